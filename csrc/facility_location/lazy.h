// Lazy greedy over millions of candidates: a heap of bounds, of which only those that lead are made exact.
//
// Gains never rise (integers, submodular), so a stale gain is an upper bound and the picks are those of naive greedy:
// the largest gain, equal gains to the lower row number.
//
// bound   min over steps t of value + sum of the k largest gains after t picks: at t = 0 of bounds, at t = 1, 2, 4, …
//         where gains cost little, at t = k always of exact gains.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "facility_location/oracle.h"

namespace mrt {

class LazyGreedy {
 public:
  // bonus [N], may be null: 0; is_open [N], may be null: everybody may be picked. Both are copied.
  LazyGreedy(Oracle& oracle, const int64_t* bonus, const uint8_t* is_open);

  // Takes these first; they count in no pick.
  void start(const int32_t* ids, int64_t count);
  // Takes up picks that were made before, with the bound that was known. Returns the first that gains something else
  // than it did, or -1.
  int64_t resume(const int32_t* ids, const int64_t* gains, int64_t count, int64_t bound);
  // Takes these picks, whatever they gain.
  void follow(const int32_t* ids, int64_t count, int64_t k);
  // Picks until there are `until` of at most k, or none gains, or the next gains less than `least`. Returns whether it
  // may be asked for more. When it throws, what was picked stands.
  bool pick(int64_t until, int64_t k, int64_t least);

  // The bound of k picks that ended before they were all made; quick: from the bounds as they are, no gain is computed.
  void finish(int64_t k, bool is_quick);

  const std::vector<int32_t>& ids() const { return ids_; }
  const std::vector<int64_t>& gains() const { return gained_; }
  int64_t value() const { return value_; }
  int64_t bound() const { return bound_; }

 private:
  struct Entry {
    int64_t bound;
    int32_t id;
    bool operator<(const Entry& other) const { return bound != other.bound ? bound < other.bound : id > other.id; }
  };

  void prepare();
  void rebuild();
  void refresh();
  void push(int32_t id);
  void evaluate(const std::vector<int32_t>& ids);
  void add(int32_t id, int64_t gain);
  int64_t leader();
  void check_bound(int64_t k);
  int64_t largest_bounds(int64_t k) const;
  int64_t largest_gains(int64_t k);
  void breathe(int64_t k);
  bool is_exact(int32_t id) const { return exact_[id] == step_; }

  Oracle& oracle_;
  std::vector<int64_t> bonus_;
  std::vector<uint8_t> open_;
  std::vector<int64_t> bounds_;
  std::vector<int32_t> exact_;  // the step for which a bound is exact
  std::vector<Entry> heap_;
  std::vector<int32_t> ids_;
  std::vector<int64_t> gained_;
  int64_t value_ = 0, bound_ = INT64_MAX, refreshes_ = 0, since_refresh_ = 0;
  int32_t step_ = 0, checked_ = -1;  // takes so far; the step whose bound is known
  bool is_prepared_ = false;
  std::chrono::steady_clock::time_point breathed_ = std::chrono::steady_clock::now();
};

}  // namespace mrt
