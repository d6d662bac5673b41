// Ctrl-C inside a long call: the binding installs a poll, the calling thread asks it now and then, and everyone else
// is told to stop.
#pragma once

#include <exception>

namespace mrt {

// Thrown out of a call that the user interrupted; the binding turns it into KeyboardInterrupt.
struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

// Returns true when a signal handler raised. Must be cheap enough for 20 calls a second.
using InterruptPoll = bool (*)();

void set_interrupt_poll(InterruptPoll poll);
bool poll_interrupt();

}  // namespace mrt
