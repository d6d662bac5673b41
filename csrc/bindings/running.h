// How a call runs on the CPU: without the interpreter's lock, interruptible, heard of while it lasts.
#pragma once

#include "bindings/arguments.h"
#include "common/float_state.h"
#include "common/interrupt.h"
#include "common/memory.h"

namespace {

// Called by the thread that entered the library, which gave up the interpreter: take it back for a moment.
inline bool python_signals() {
  const py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// Runs `body` without the interpreter lock; Ctrl-C and missing memory become Python's own exceptions.
template <class Body>
auto released(const Body& body) {
  try {
    const py::gil_scoped_release release;
    const mrt::FixedFloatState state;
    return body();
  } catch (const mrt::Interrupted&) {
    throw py::error_already_set();
  } catch (const mrt::OutOfMemory& error) {
    PyErr_SetString(PyExc_MemoryError, error.what());
    throw py::error_already_set();
  }
}

// `callback` (None: nobody) hears how far the call is: now and then, and at its end.
class Listening {
 public:
  explicit Listening(const py::object& callback) {
    if (callback.is_none()) return;
    progress_ = [callback](double fraction) {
      const py::gil_scoped_acquire gil;
      callback(fraction);
    };
    mrt::set_progress(&progress_);
  }
  ~Listening() { mrt::set_progress(nullptr); }
  void finish() const {
    if (progress_) progress_(1.0);
  }

 private:
  mrt::Progress progress_;
};

}  // namespace
