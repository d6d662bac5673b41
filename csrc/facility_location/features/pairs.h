// facility_location on the CPU: pairs of large sets, used up while their tile is in the cache. Rows of a tile are candidates
// j, columns the rows i that they cover; t[j][i] is the fixed point of pair_table.h.
//
//   Stored      t, and the sum over i of t[j][i], the gain of a first pick
//   Gained      sum over i of max(t[j][i] - reached[i], 0)
//   Exceeding   the pairs with t[j][i] > reached[i], the only ones that can matter yet
//   Owned       reached[i] = max over j of t[j][i], and the first j that has it
//
// Where candidates cover each other, a tile above the diagonal serves twice: as it is, and mirrored. A tile without a
// pair above what is reached is dead and stays dead: bitmaps remember it. Sums are integers: 16 lanes of int32 a
// candidate, which the caller adds up after at most 64 panels of columns.
//
// Padding: unit is 0 beyond the covered rows, so that t is 0 there, never more than what is reached.
#pragma once

#include "facility_location/lists.h"
#include "facility_location/pair_table.h"
#include "tile/filter.h"

namespace mrt {
namespace {

// Sixteen pairs of one candidate. Vectors of the compiler: one register, or several, of any instruction set.
typedef int32_t Steps __attribute__((vector_size(64)));
typedef float Factors __attribute__((vector_size(64)));
typedef uint16_t Reached __attribute__((vector_size(32)));

MRT_INLINE void load_reached(const uint16_t* reached, Steps& out) {
  Reached narrow;
  memcpy(&narrow, reached, sizeof narrow);
  out = __builtin_convertvector(narrow, Steps);
}

// Rounded half to even, at most STEPS.
MRT_INLINE void rounded_steps(const Factors& given, Steps& t) {
  Factors steps = (given + INTEGERS) - INTEGERS;
  const Factors most = Factors{} + static_cast<float>(STEPS);
  steps = steps < most ? steps : most;
  t = __builtin_convertvector(steps, Steps);
}

// fixed_point of pair_table.h for a whole row of a tile.
MRT_INLINE void fixed_points(const int32_t* products, int32_t base, const float* unit, float quality, Steps& t) {
  Steps s;
  Factors u;
  memcpy(&s, products, sizeof s);
  memcpy(&u, unit, sizeof u);
  s += base;
  s = s > 0 ? s : Steps{};
  rounded_steps(__builtin_convertvector(s, Factors) * (u * quality), t);
}

MRT_INLINE bool is_any(const Steps& lanes) {
  typedef int64_t Words __attribute__((vector_size(64)));
  const Words words = reinterpret_cast<const Words&>(lanes);
  int64_t any = 0;
  for (int i = 0; i < 8; ++i) any |= words[i];
  return any != 0;
}

struct Stored {
  uint16_t* t;  // [N, stride]
  int64_t stride;
  const GainLanes& lanes;

  MRT_INLINE void operator()(int64_t j, int64_t i, const Steps& t_ji, Steps& live) const {
    const Reached narrow = __builtin_convertvector(t_ji, Reached);
    memcpy(t + j * stride + i, &narrow, sizeof narrow);
    lanes.add(j, t_ji);
    live |= t_ji;
  }
};

struct Gained {
  const uint16_t* reached;
  const GainLanes& lanes;

  MRT_INLINE void operator()(int64_t j, int64_t i, const Steps& t, Steps& live) const {
    Steps best;
    load_reached(reached + i, best);
    Steps more = t - best;
    more = more > 0 ? more : Steps{};
    lanes.add(j, more);
    live |= more;
  }
};

struct Exceeding {
  const uint16_t* reached;
  const uint8_t* is_open;
  KeptPairs& kept;

  MRT_INLINE void operator()(int64_t j, int64_t i, const Steps& t, Steps& live) const {
    if (is_open[j] == 0) return;
    Steps best;
    load_reached(reached + i, best);
    const Steps is_above = t > best;
    live |= is_above;
    if (!is_any(is_above)) return;
    const uint32_t above = lanes_set(is_above);
    const Steps within =
        Steps{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + static_cast<int32_t>(i % LIST_BLOCK);
    alignas(64) const Steps pairs = (within << STEP_BITS) | t;
    kept.write(j, static_cast<int>(__builtin_popcount(above)), [&](uint32_t* out) {
      compress(reinterpret_cast<const int32_t*>(&pairs), above, reinterpret_cast<int32_t*>(out));
    });
  }
};

struct Owned {
  int32_t *reached, *owner;

  MRT_INLINE void operator()(int64_t j, int64_t i, const Steps& t, Steps&) const {
    Steps best, who;
    memcpy(&best, reached + i, sizeof best);
    memcpy(&who, owner + i, sizeof who);
    const Steps mine = Steps{} + static_cast<int32_t>(j);
    who = t > best ? mine : who;
    best = t > best ? t : best;
    memcpy(reached + i, &best, sizeof best);
    memcpy(owner + i, &who, sizeof who);
  }
};

// Hands each row of a tile, in fixed point, to what consumes it; and the rows of its mirror image.
template <class Consumer>
struct Streamed {
  const PairBlock& block;
  const PairRule& rule;
  const Consumer& consumer;

  MRT_INLINE void one_side(int64_t row, int64_t column, const int32_t* tile, Steps& live) const {
    for (int64_t r = 0; r < PANEL && row + r < rule.N; ++r) {
      Steps t;
      fixed_points(tile + r * PANEL, rule.base, rule.unit + column, rule.quality[row + r], t);
      consumer(row + r, column, t, live);
    }
  }

  MRT_INLINE void operator()(int64_t row, int64_t column, const int32_t* tile) const {
    Steps live{};
    one_side(row, column, tile, live);
    if (block.is_mirrored && row != column) {
      alignas(64) int32_t mirrored[TILE];
      transpose(reinterpret_cast<const Unit*>(tile), PANEL, reinterpret_cast<Unit*>(mirrored));
      one_side(column, row, mirrored, live);
    }
    if (block.alive != nullptr && !is_any(live))
      block.alive[row / PANEL - block.rows.first] &= ~(uint64_t{1} << (column / PANEL - block.columns.first));
  }
};

// Whether one of the tiles of panel p with `parts` panels of columns is alive.
struct Alive {
  const PairBlock& block;

  MRT_INLINE bool operator()(int64_t p, int64_t q, int parts) const {
    if (block.alive == nullptr) return true;
    const uint64_t tiles = (uint64_t{1} << parts) - 1;
    return (block.alive[p - block.rows.first] >> (q - block.columns.first) & tiles) != 0;
  }
};

template <class Consumer>
MRT_INLINE void stream_tiles(const PairBlock& block, const PairRule& rule, const Consumer& consumer) {
  const bool is_upper = block.is_mirrored && block.rows.first == block.columns.first;
  block_of_tiles<Pairs>(block.rows, block.columns, block.U, is_upper, Streamed<Consumer>{block, rule, consumer},
                        Alive{block});
}

void pairs_stored(const PairBlock& block, const PairRule& rule, uint16_t* t, int64_t stride, const GainLanes& lanes) {
  stream_tiles(block, rule, Stored{t, stride, lanes});
}
void pairs_gained(const PairBlock& block, const PairRule& rule, const uint16_t* reached, const GainLanes& lanes) {
  stream_tiles(block, rule, Gained{reached, lanes});
}
void pairs_exceeding(const PairBlock& block, const PairRule& rule, const uint16_t* reached, const uint8_t* is_open,
                     KeptPairs& kept) {
  stream_tiles(block, rule, Exceeding{reached, is_open, kept});
}
void pairs_owned(const PairBlock& block, const PairRule& rule, int32_t* reached, int32_t* owner) {
  stream_tiles(block, rule, Owned{reached, owner});
}

}  // namespace
}  // namespace mrt
