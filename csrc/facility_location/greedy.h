// The greedy loop, written once over a gain oracle.
//
// An Oracle has: gains(out) all gains now, -1 for rows that are closed; gain(j) one of them; take(j) picks j and closes
// it; sum_of_largest(values, k, scratch). Gains never rise (integers, submodular), so a stale gain is an upper bound:
// lazy greedy picks exactly what naive greedy picks. At t = 0, 1, 2, 4, …, k all gains are refreshed: value + the sum
// of the k largest bounds any set of k rows from above.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mrt {

struct GreedyResult {
  int64_t picks = 0;      // made before no candidate gained
  int64_t effective = 0;  // of them with gain > 0
  int64_t value = 0, bound = INT64_MAX;
};

struct GreedyScratch {
  int64_t *bounds, *sorted;  // [N]
  int32_t* refreshed;        // [N] the pick for which bounds[j] is exact; unused while all of them are
};

// Below this many rows all gains are refreshed at every pick: cheaper than looking for the few that need it.
constexpr int64_t EAGER_ROWS = 128;

// Picks of a group of N rows: the gains of all rows, or the few that lead, refreshed at every step.
template <class Oracle>
class Bounds {
 public:
  Bounds(Oracle& oracle, int64_t N, const GreedyScratch& s)
      : oracle_(oracle), N_(N), s_(s), is_eager_(N <= EAGER_ROWS) {}

  // All gains, where the step asks for them or a small group makes them cheap.
  void refresh(int64_t step, bool all) {
    step_ = static_cast<int32_t>(step);
    if (!all && !is_eager_) return;
    oracle_.gains(s_.bounds);
    if (!is_eager_) std::fill(s_.refreshed, s_.refreshed + N_, step_);
  }

  // The exact gain of row j.
  int64_t exact(int64_t j) {
    if (!is_eager_ && s_.refreshed[j] != step_) {
      s_.bounds[j] = oracle_.gain(j);
      s_.refreshed[j] = step_;
    }
    return s_.bounds[j];
  }

  // The row with the largest gain, the lowest of equals: refreshes stale bounds as long as one of them leads.
  int64_t leader() {
    for (;;) {
      const int64_t j = oracle_.largest(s_.bounds), bound = s_.bounds[j];
      if (bound <= 0 || exact(j) == bound) return j;
    }
  }

  int64_t sum_of_largest(int64_t k) { return oracle_.sum_of_largest(s_.bounds, k, s_.sorted); }

  void take(int64_t j) {
    oracle_.take(j);
    s_.bounds[j] = -1;
  }

 private:
  Oracle& oracle_;
  const int64_t N_;
  const GreedyScratch& s_;
  const bool is_eager_;
  int32_t step_ = 0;
};

// Up to k picks into ids and gains. With `given` they are prescribed; without, the loop ends when no candidate gains.
template <class Oracle>
GreedyResult greedy(Oracle& oracle, int64_t N, int64_t k, const int32_t* given, const GreedyScratch& s, int32_t* ids,
                    int64_t* gains) {
  GreedyResult result;
  Bounds<Oracle> bounds(oracle, N, s);
  for (int64_t step = 0;; ++step) {
    const bool is_checked = step == k || (step & (step - 1)) == 0;
    bounds.refresh(step, is_checked);
    if (is_checked) result.bound = std::min(result.bound, result.value + bounds.sum_of_largest(k));
    if (step == k) break;
    const int64_t j = given != nullptr ? given[step] : bounds.leader();
    const int64_t gain = bounds.exact(j);
    if (given == nullptr && gain <= 0) {
      result.bound = std::min(result.bound, result.value);
      break;
    }
    ids[step] = static_cast<int32_t>(j);
    gains[step] = gain;
    result.value += gain;
    result.effective += gain > 0;
    ++result.picks;
    bounds.take(j);
  }
  return result;
}

}  // namespace mrt
