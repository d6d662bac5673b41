// Ctrl-C and progress inside a long call: the binding installs a poll, the calling thread asks it now and then, and
// everyone else is told to stop; whoever wants to know how far the call is hears of it on the same occasions.
#pragma once

#include <exception>
#include <functional>

namespace mrt {

// Thrown out of a call that the user interrupted; the binding turns it into KeyboardInterrupt.
struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

// Returns true when a signal handler raised. Must be cheap enough for 20 calls a second.
using InterruptPoll = bool (*)();

void set_interrupt_poll(InterruptPoll poll);
bool poll_interrupt();

// Who hears how far the calls of this thread are, as a fraction from 0 to 1; null: nobody.
using Progress = std::function<void(double)>;
void set_progress(const Progress* progress);
// Tells them, from a loop that is no parallel_for.
void tell_progress(double fraction);

// While it lives, the loops that this thread starts are the part from … to of the whole call.
class ProgressRange {
 public:
  ProgressRange(double from, double to);
  ~ProgressRange();
  ProgressRange(const ProgressRange&) = delete;
  ProgressRange& operator=(const ProgressRange&) = delete;
};

}  // namespace mrt
