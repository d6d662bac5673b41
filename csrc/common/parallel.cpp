// The worker pool behind parallel_for, and the interrupt poll.
#include "common/parallel.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "common/float_state.h"
#include "common/interrupt.h"

namespace mrt {

namespace {

std::atomic<InterruptPoll> interrupt_poll{nullptr};

// Of the calling thread. `progress` is heard only inside a ProgressRange.
struct Part {
  const Progress* progress = nullptr;
  bool is_counted = false;
  double from = 0.0, to = 1.0;
};
thread_local Part part;

constexpr auto POLL_INTERVAL = std::chrono::milliseconds(50);

}  // namespace

void set_interrupt_poll(InterruptPoll poll) {
  interrupt_poll = poll;
}

void set_progress(const Progress* progress) {
  part.progress = progress;
}

void tell_progress(double fraction) {
  if (part.progress != nullptr) (*part.progress)(fraction);
}

ProgressRange::ProgressRange(double from, double to) {
  part = {part.progress, true, from, to};
}

ProgressRange::~ProgressRange() {
  part.is_counted = false;
}

bool poll_interrupt() {
  const InterruptPoll poll = interrupt_poll;
  return poll != nullptr && poll();
}

class Job {
 public:
  Job(int64_t count, int64_t grain, const std::function<void(Worker&, int64_t)>& body)
      : count_(count), grain_(grain), body_(body), next_poll_(std::chrono::steady_clock::now() + POLL_INTERVAL) {}

  void work(int index) {
    const FixedFloatState state;
    Worker worker(*this, index);
    try {
      for (;;) {
        const int64_t first = next_.fetch_add(grain_);
        if (first >= count_) return;
        for (int64_t item = first; item < std::min(count_, first + grain_); ++item) body_(worker, item);
        checkpoint(index);
      }
    } catch (...) {
      fail(std::current_exception());
    }
  }

  // Only the calling thread may ask Python for signals; the others read the flag it leaves.
  void checkpoint(int index) {
    if (stop_.load(std::memory_order_relaxed)) throw Interrupted();
    if (index != 0) return;
    const auto now = std::chrono::steady_clock::now();
    if (now < next_poll_) return;
    next_poll_ = now + POLL_INTERVAL;
    if (poll_interrupt()) throw Interrupted();
    if (part.progress == nullptr || !part.is_counted) return;
    const int64_t done = std::min(next_.load(), count_) - 1;  // one of those claimed may be under way: never all
    (*part.progress)(part.from + (part.to - part.from) * static_cast<double>(done) / static_cast<double>(count_));
  }

  void rethrow() {
    if (error_) std::rethrow_exception(error_);
  }

  std::atomic<int> next_index{1};
  int running = 0;  // guarded by the pool's mutex
  std::condition_variable idle;

 private:
  void fail(std::exception_ptr error) {
    const std::lock_guard<std::mutex> lock(error_mutex_);
    if (!error_) error_ = std::move(error);
    stop_ = true;
    next_ = count_;
  }

  const int64_t count_, grain_;
  const std::function<void(Worker&, int64_t)>& body_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> stop_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::chrono::steady_clock::time_point next_poll_;
};

void Worker::checkpoint() {
  job_.checkpoint(index_);
}

namespace {

class Pool {
 public:
  // The pool of this process. A parent's pool is left alone: its threads did not survive the
  // fork, and its mutex may be locked for ever.
  static Pool& of_this_process() {
    static std::atomic<Pool*> current{nullptr};
    Pool* pool = current.load();
    while (pool == nullptr || pool->pid_ != getpid()) {
      Pool* fresh = new Pool;
      if (current.compare_exchange_strong(pool, fresh)) return *fresh;
      delete fresh;
    }
    return *pool;
  }

  void run(Job& job, int threads) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (num_workers_ < threads - 1) {
        std::thread([this] { serve(); }).detach();
        ++num_workers_;
      }
      tickets_.insert(tickets_.end(), threads - 1, &job);
    }
    wake_.notify_all();
    job.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    tickets_.erase(std::remove(tickets_.begin(), tickets_.end(), &job), tickets_.end());
    job.idle.wait(lock, [&job] { return job.running == 0; });
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return !tickets_.empty(); });
      Job& job = *tickets_.front();
      tickets_.pop_front();
      ++job.running;
      lock.unlock();
      job.work(job.next_index.fetch_add(1));
      lock.lock();
      if (--job.running == 0) job.idle.notify_all();
    }
  }

  const pid_t pid_ = getpid();
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job*> tickets_;
  int num_workers_ = 0;
};

}  // namespace

void parallel_for(int64_t count, int64_t grain, int threads, const std::function<void(Worker&, int64_t)>& body) {
  Job job(count, grain, body);
  const int64_t chunks = (count + grain - 1) / grain;
  const int useful = static_cast<int>(std::min<int64_t>(std::max(threads, 1), chunks));
  if (useful > 1) {
    Pool::of_this_process().run(job, useful);
  } else {
    job.work(0);
  }
  job.rethrow();
}

}  // namespace mrt
