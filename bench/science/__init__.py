"""What the paper says, reproduced: `python -m bench.science [name ...]`, or `make science` for all.

__main__    the command line                      common      intervals, figures, SCIENCE.md
variance    the variance law over a grid          budget      the best K of a budget, and where more stops paying
gradients   what selection does to a gradient     redundancy  near-duplicate prompts act as more responses
modes       mode coverage, the greedy guarantee   diversity   where a larger K pays: diversity by redundancy
benchmark   prompts with many responses, as data  training    a small decoder trained on them; `trained` tells of it

An experiment is a module with HEADING and CLAIM (texts), `measure(seeds, ...)` (numbers, a row per seed), `table` and
`findings` (what SCIENCE.md says of them) and `draw` (the picture). Nothing here depends on the machine but its speed.
"""

EXPERIMENTS = ("variance", "budget", "gradients", "redundancy", "modes", "diversity")  # bench/science/<name>.py
