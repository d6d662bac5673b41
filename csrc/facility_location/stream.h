// facility_location on the CPU: pairs of large sets, used up while their tile is in the cache. Rows of a tile are
// candidates j, columns the rows i that they cover; t[j][i] is the fixed point of pair_table.h.
//
//   Summed      t is stored, and sum over i of t[j][i], the gain of a first pick, comes with it
//   Gained      sum over i of max(t[j][i] - best[i], 0): gains without the table
//   Exceeding   the pairs with t[j][i] > best[i], the only ones that can matter once best is reached
//   Largest     max over i of t[j][i]
//
// Padding: unit is 0 beyond the covered rows, so that t is 0 there. Sums are integers.
#pragma once

#include "facility_location/pair_table.h"

namespace mrt {
namespace {

struct Summed {
  uint16_t* t;  // [N, stride]
  int64_t stride;
  int64_t* sums;

  MRT_INLINE void operator()(int64_t j, int64_t i, const uint16_t* steps) const {
    memcpy(t + j * stride + i, steps, PANEL * sizeof *t);
    int32_t sum = 0;
    for (int c = 0; c < PANEL; ++c) sum += steps[c];
    sums[j] += sum;
  }
};

struct Gained {
  const uint16_t* best;
  int64_t* gains;

  MRT_INLINE void operator()(int64_t j, int64_t i, const uint16_t* steps) const {
    int32_t gain = 0;
    for (int c = 0; c < PANEL; ++c) gain += steps[c] > best[i + c] ? steps[c] - best[i + c] : 0;
    gains[j] += gain;
  }
};

struct Exceeding {
  const uint16_t* best;
  PairKept kept;
  void* context;

  MRT_INLINE void operator()(int64_t j, int64_t i, const uint16_t* steps) const {
    for (int c = 0; c < PANEL; ++c)
      if (steps[c] > best[i + c]) kept(context, j, i + c, steps[c]);
  }
};

struct Largest {
  uint16_t* most;

  MRT_INLINE void operator()(int64_t j, int64_t, const uint16_t* steps) const {
    for (int c = 0; c < PANEL; ++c) most[j] = steps[c] > most[j] ? steps[c] : most[j];
  }
};

// Hands each row of a tile, in fixed point, to what consumes it.
template <class Consumer>
struct Streamed {
  const PairRule& rule;
  Consumer consumer;

  MRT_INLINE void operator()(int64_t row, int64_t column, const int32_t* tile) const {
    alignas(64) uint16_t steps[PANEL];
    for (int64_t r = 0; r < PANEL && row + r < rule.N; ++r) {
      fixed_point(tile + r * PANEL, rule.base, rule.unit + column, rule.quality[row + r], steps);
      consumer(row + r, column, steps);
    }
  }
};

template <class Consumer>
MRT_INLINE void stream_tiles(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule,
                             const Consumer& consumer) {
  tiles<Pairs>(candidates, covered, U, false, Streamed<Consumer>{rule, consumer});
}

void pairs_summed(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule, uint16_t* t,
                  int64_t stride, int64_t* sums) {
  stream_tiles(candidates, covered, U, rule, Summed{t, stride, sums});
}
void pairs_gained(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule,
                  const uint16_t* best, int64_t* gains) {
  stream_tiles(candidates, covered, U, rule, Gained{best, gains});
}
void pairs_exceeding(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule,
                     const uint16_t* best, PairKept kept, void* context) {
  stream_tiles(candidates, covered, U, rule, Exceeding{best, kept, context});
}
void pairs_largest(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule, uint16_t* most) {
  stream_tiles(candidates, covered, U, rule, Largest{most});
}

}  // namespace
}  // namespace mrt
