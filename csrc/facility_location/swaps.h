// Swaps of a kept candidate for another one, while they raise the value (after FasterPAM; Schubert and Rousseeuw, 2021).
//
// Every row knows the two kept candidates that cover it best. A candidate's swaps with all kept ones are then known from
// the pairs in which it exceeds the second best: with t, t1 >= t2 of a row whose best is m,
//
//   shared  += max(t - t1, 0)                     whoever goes
//   back[m] += min(t, t1) - t2  where t > t2      of what m takes with it, loss[m] = sum of t1 - t2 over its rows
//   swap(m, j) = shared + bonus_j - bonus_m + back[m] - loss[m]
//
// Candidates are tried in batches, in the order of their numbers, round and round; the best swap of a batch is made, the
// lower candidate of equals, then the lower place.
#pragma once

#include <cstdint>
#include <vector>

#include "facility_location/limits.h"

namespace mrt {

struct RowStep {
  int32_t row;
  uint16_t t;
};

// Places of the two kept candidates with the largest pairs, -1 for none, and those pairs.
struct TwoBest {
  int32_t first = -1, second = -1;
  uint16_t t1 = 0, t2 = 0;
  void offer(int32_t place, uint16_t t) {
    if (t > t1) {
      second = first;
      t2 = t1;
      first = place;
      t1 = t;
    } else if (t > t2) {
      second = place;
      t2 = t;
    }
  }
};

// The steps of one candidate above floor; `count` is a multiple of 32.
inline void steps_above(const uint16_t* t, const uint16_t* floor, int64_t count, std::vector<RowStep>& out) {
  constexpr int64_t LOOK = 32;
  out.clear();
  for (int64_t first = 0; first < count; first += LOOK) {
    uint16_t any = 0;  // most rows have none
    for (int64_t i = first; i < first + LOOK; ++i) any |= static_cast<uint16_t>(t[i] > floor[i] ? 1 : 0);
    if (any == 0) continue;
    for (int64_t i = first; i < first + LOOK; ++i)
      if (t[i] > floor[i]) out.push_back({static_cast<int32_t>(i), t[i]});
  }
}

// Pairs of a ground whatever was taken; rows are numbered as it likes.
class PairSource {
 public:
  virtual ~PairSource() = default;
  virtual int64_t rows() const = 0;
  // out[c] = the pairs of candidate ids[c] above floor [rows()].
  virtual void above(const int32_t* ids, int64_t count, const uint16_t* floor, std::vector<RowStep>* out) = 0;
  // out[r] of these rows among kept [K], ascending places first; place [candidates] of each that is kept, else -1.
  virtual void two_best(const int32_t* rows, int64_t count, const std::vector<int32_t>& kept,
                        const std::vector<int32_t>& place, TwoBest* out) = 0;
};

class Swaps {
 public:
  // The first num_fixed of kept stay. bonus [N], is_open [N]: who may come in. Limits have taken nothing yet.
  Swaps(PairSource& pairs, std::vector<int32_t> kept, int64_t num_fixed, std::vector<int64_t> bonus,
        std::vector<uint8_t> is_open, Limits limits);
  // Until none raises the value, or so many are made. When it throws, what was swapped stands.
  void run(int64_t most);

  const std::vector<int32_t>& kept() const { return kept_; }
  int64_t made() const { return made_; }
  int64_t tried() const { return tried_; }

 private:
  struct Swap {
    int64_t gain = 0;
    int32_t id = -1, place = -1;
  };

  std::vector<int32_t> next_batch(int64_t most);
  Swap best_of(int32_t id, const std::vector<RowStep>& pairs);
  void make(const Swap& swap);
  void count_losses();

  PairSource& pairs_;
  std::vector<int32_t> kept_, place_;
  const int64_t num_fixed_;
  const std::vector<int64_t> bonus_;
  std::vector<uint8_t> open_;
  Limits limits_;
  std::vector<TwoBest> best_;         // [rows]
  std::vector<uint16_t> floor_;       // [rows] t2
  std::vector<int64_t> loss_, back_;  // [K]
  int64_t next_ = 0, made_ = 0, tried_ = 0;
};

}  // namespace mrt
