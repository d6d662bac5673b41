"""mrtkern inside other people's trainers: each module needs its library and uses public names of mrtkern only."""
