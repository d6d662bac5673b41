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
  int32_t* refreshed;        // [N] the pick for which bounds[j] is exact
};

// Below this many rows all gains are refreshed at every pick: cheaper than looking for the few that need it.
constexpr int64_t EAGER_ROWS = 128;

// The row with the largest gain, the lowest of equals; refreshes stale bounds as long as one of them leads.
template <class Oracle>
int64_t leader(Oracle& oracle, int64_t N, int32_t step, const GreedyScratch& s) {
  for (;;) {
    const int64_t j = std::max_element(s.bounds, s.bounds + N) - s.bounds;
    if (s.refreshed[j] == step || s.bounds[j] <= 0) return j;
    s.bounds[j] = oracle.gain(j);
    s.refreshed[j] = step;
  }
}

// Up to k picks into ids and gains. With `given` they are prescribed; without, the loop ends when no candidate gains.
template <class Oracle>
GreedyResult greedy(Oracle& oracle, int64_t N, int64_t k, const int32_t* given, const GreedyScratch& s, int32_t* ids,
                    int64_t* gains) {
  GreedyResult result;
  for (int64_t step = 0;; ++step) {
    const bool bounds_now = step == k || (step & (step - 1)) == 0;
    if (bounds_now || N <= EAGER_ROWS) {
      oracle.gains(s.bounds);
      std::fill(s.refreshed, s.refreshed + N, static_cast<int32_t>(step));
    }
    if (bounds_now) result.bound = std::min(result.bound, result.value + oracle.sum_of_largest(s.bounds, k, s.sorted));
    if (step == k) break;
    int64_t j;
    if (given != nullptr) {
      j = given[step];
      if (s.refreshed[j] != step) s.bounds[j] = oracle.gain(j);
    } else {
      j = leader(oracle, N, static_cast<int32_t>(step), s);
      if (s.bounds[j] <= 0) {
        result.bound = std::min(result.bound, result.value);
        break;
      }
    }
    ids[step] = static_cast<int32_t>(j);
    gains[step] = s.bounds[j];
    result.value += s.bounds[j];
    result.effective += s.bounds[j] > 0;
    ++result.picks;
    oracle.take(j);
    s.bounds[j] = -1;
  }
  return result;
}

}  // namespace mrt
