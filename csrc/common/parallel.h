// Work shared among threads: items are claimed one by one, so results must not depend on who computes which.
//
// The workers are std::threads that wait between calls. A forked child has none of its parent's threads: the pool is
// rebuilt when the process id changes. Several callers may be inside at once: workers serve the calls in turn, and a
// caller never waits for a worker that has not started on its call.
#pragma once

#include <cstdint>
#include <functional>

namespace mrt {

class Job;

// One thread's part in a call.
class Worker {
 public:
  Worker(Job& job, int index) : job_(job), index_(index) {}
  int index() const { return index_; }  // 0 … threads - 1, for per-thread workspaces
  // Throws Interrupted once the user pressed Ctrl-C or another thread failed. Call it at least every few milliseconds.
  void checkpoint();

 private:
  Job& job_;
  int index_;
};

// Calls body(worker, item) once for every item 0 … count - 1 on at most `threads` threads, `grain` items at a time.
// Floating-point state is the default one inside (no flushing of subnormals, round to nearest).
// Rethrows the first exception.
void parallel_for(int64_t count, int64_t grain, int threads, const std::function<void(Worker&, int64_t)>& body);

}  // namespace mrt
