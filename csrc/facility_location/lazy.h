// Lazy greedy over millions of candidates: a heap of bounds, of which only those that lead are made exact.
//
// Gains never rise (integers, submodular), so a stale gain is an upper bound and the picks are those of naive greedy:
// the largest gain, equal gains to the lower row number. Within limits they are those of naive greedy among the
// candidates that are admitted; by ratio the largest gain a cost leads. From a sample, the best of a few that are drawn
// anew for every pick leads (stochastic greedy; Mirzasoleiman et al., AAAI 2015).
//
// bound   min over steps t of value + the largest sum of gains that any set of k within the limits can have after t
//         picks: at t = 0 of bounds, at t = 1, 2, 4, … where gains cost little, at t = k always of exact gains.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "facility_location/limits.h"
#include "facility_location/oracle.h"

namespace mrt {

// When picking ends before there are k.
struct Ending {
  int64_t least;   // steps that a pick must gain
  int64_t enough;  // steps of covered rows that suffice
};

// Why picking ended: it may go on, k are picked, no candidate that is admitted gains, what was asked for is reached.
enum class Ended { no, full, dry, enough };

class LazyGreedy {
 public:
  // bonus [N], may be null: 0; is_open [N], may be null: everybody may be picked. All are copied.
  LazyGreedy(Oracle& oracle, const int64_t* bonus, const uint8_t* is_open, Limits limits);

  // Every pick is the best of ceil(candidates / k * draws) candidates, drawn by (seed, group_key, number of the pick).
  void sample(uint64_t seed, uint64_t group_key, double draws);

  // Takes these first; they count in no pick.
  void start(const int32_t* ids, int64_t count);
  // Takes up picks that were made before, with the bound that was known. Returns the first that gains something else
  // than it did, or -1.
  int64_t resume(const int32_t* ids, const int64_t* gains, int64_t count, int64_t bound);
  // Takes these picks, whatever they gain.
  void follow(const int32_t* ids, int64_t count, int64_t k);
  // Picks until there are `until` of at most k, or it ends before. When it throws, what was picked stands.
  Ended pick(int64_t until, int64_t k, const Ending& ending);

  // The bound of k picks that ended before they were all made; quick: from the bounds as they are, no gain is computed.
  void finish(int64_t k, bool is_quick);

  const std::vector<int32_t>& ids() const { return ids_; }
  const std::vector<int64_t>& gains() const { return gained_; }
  int64_t value() const { return value_; }
  int64_t covered() const { return value_ - bonuses_; }
  int64_t bound() const { return bound_; }

 private:
  void prepare();
  void rebuild();
  void refresh();
  void draw(int64_t k);
  void push(int32_t id);
  Entry pop();
  void evaluate(const std::vector<int32_t>& ids);
  void add(int32_t id, int64_t gain);
  int64_t leader();
  void check_bound(int64_t k);
  int64_t most(int64_t k, bool is_exact);
  int64_t largest_bounds(int64_t k) const;
  int64_t largest_gains(int64_t k);
  bool is_behind(const Entry& a, const Entry& b) const { return limits_.is_behind(a, b); }
  auto order() const {
    return [this](const Entry& a, const Entry& b) { return is_behind(a, b); };
  }
  void breathe(int64_t k);
  bool is_cheap() const { return oracle_.is_cheap() && draws_ == 0.0; }
  bool is_exact(int32_t id) const { return exact_[id] == step_; }

  Oracle& oracle_;
  Limits limits_;
  std::vector<int64_t> bonus_;
  std::vector<uint8_t> open_;
  std::vector<int64_t> bounds_;
  std::vector<int32_t> exact_;               // the step for which a bound is exact
  std::vector<Entry> heap_;                  // of those that may be picked, or of the sample
  std::vector<int32_t> drawn_from_, drawn_;  // candidates open at the beginning; the sample each was drawn into last
  int32_t samples_ = 0;
  uint64_t stream_ = 0;
  double draws_ = 0;  // 0: no sample
  std::vector<int32_t> ids_;
  std::vector<int64_t> gained_;
  int64_t value_ = 0, bonuses_ = 0, bound_ = INT64_MAX, since_refresh_ = 0;
  int32_t step_ = 0, checked_ = -1, refreshed_ = -1;  // takes so far; the steps whose bound, whose gains are known
  bool is_prepared_ = false;
  std::chrono::steady_clock::time_point breathed_ = std::chrono::steady_clock::now();
};

}  // namespace mrt
