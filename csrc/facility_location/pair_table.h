// facility_location on the CPU: the inner loops of one group, compiled once per instruction set.
//
//   pairs    t[j][i] = min(32767, rint(max(0, base + q_j · q_i) * (unit_i * a_j))), straight from the product tile
//   gains    gain[j] = sum over i of max(t[j][i] - best[i], 0): one saturating subtraction for 16 or 32 pairs
//   cover    best[i] = max over picks j of t[j][i]
//   rank_keys   the counting hash of mrtkern/_random.py;   sort_by_key, sum_of_largest   by counting, in small groups
//
// Sums are integers. float32 steps are rounded one by one (the compiler is told not to fuse them).
#pragma once

#include "common/draws.h"
#include "facility_location/facility_location.h"
#include "tile/product.h"

namespace mrt {
namespace {

// Adding and subtracting 1.5 * 2^23 rounds to integers, half to even, for values below 2^22.
constexpr float INTEGERS = 0x1.8p23f;

// t of one row of a tile, PANEL values, for candidate quality a; `unit` of the rows it covers.
MRT_INLINE void fixed_point(const int32_t* __restrict products, int32_t base, const float* __restrict unit, float a,
                            uint16_t* __restrict t) {
  for (int c = 0; c < PANEL; ++c) {
    const int32_t similarity = base + products[c];
    const float s = static_cast<float>(similarity > 0 ? similarity : 0);
    const float steps = (s * (unit[c] * a) + INTEGERS) - INTEGERS;
    t[c] = static_cast<uint16_t>(static_cast<int32_t>(steps < STEPS ? steps : static_cast<float>(STEPS)));
  }
}

struct FixedPoint {
  int32_t base;
  const float* unit;     // [stride], zero beyond N
  const float* quality;  // [round_up(N, 16)], anything beyond N
  PairTable table;

  MRT_INLINE void operator()(int64_t row, int64_t column, const int32_t* __restrict tile) const {
    const int64_t rows = table.N - row < PANEL ? table.N - row : PANEL;
    for (int64_t r = 0; r < rows; ++r)
      fixed_point(tile + r * PANEL, base, unit + column, quality[row + r], table.t + (row + r) * table.stride + column);
  }
};

// Tiles of panel row p: a share of the table small enough to ask for interrupts in between.
void pairs(const Unit* panels, int64_t U, int64_t p, int32_t base, const float* unit, const float* quality,
           const PairTable& table) {
  panel_row<Pairs>(panels, table.N, U, p, FixedPoint{base, unit, quality, table});
}

// open is -1 for rows that may be picked, 0 for closed ones, whose gain is -1.
void gains(const PairTable& table, const uint16_t* best, const int64_t* bonus, const int64_t* open,
           int64_t* __restrict out) {
  for (int64_t j = 0; j < table.N; ++j) out[j] = excess(table.t + j * table.stride, best, table.stride);
  for (int64_t j = 0; j < table.N; ++j) out[j] = ((out[j] + bonus[j]) & open[j]) | ~open[j];
}

// The first of the largest values.
int64_t largest(const int64_t* values, int64_t N) {
  int64_t most = values[0], j = 0;
  for (int64_t i = 1; i < N; ++i) most = values[i] > most ? values[i] : most;
  while (values[j] != most) ++j;
  return j;
}

int32_t gain(const PairTable& table, const uint16_t* best, int64_t j) {
  return excess(table.t + j * table.stride, best, table.stride);
}

void take(const PairTable& table, int64_t j, uint16_t* __restrict best) {
  const uint16_t* __restrict t = table.t + j * table.stride;
  for (int64_t i = 0; i < table.stride; ++i) best[i] = t[i] > best[i] ? t[i] : best[i];
}

// Sum over i of the largest t[j][i] among count picks.
int64_t cover(const PairTable& table, const int32_t* picks, int64_t count) {
  typedef uint16_t Lanes __attribute__((vector_size(64)));
  constexpr int WIDTH = 32;
  alignas(64) const uint16_t zeros[WIDTH] = {};
  int64_t total = 0;
  for (int64_t i = 0; i < table.stride; i += WIDTH) {
    alignas(64) Lanes best{};
    for (int64_t pick = 0; pick < count; ++pick) {
      Lanes t;
      memcpy(&t, table.t + picks[pick] * table.stride + i, sizeof t);
      best = t > best ? t : best;
    }
    total += excess(reinterpret_cast<const uint16_t*>(&best), zeros, WIDTH);
  }
  return total;
}

// owner[i] = the pick (in ascending order) with the largest t[pick][i], the first of equals; -1 where that is 0.
void owners(const PairTable& table, const int32_t* picks, int64_t count, uint16_t* __restrict best,
            int32_t* __restrict owner) {
  memset(best, 0, table.stride * sizeof *best);
  for (int64_t i = 0; i < table.N; ++i) owner[i] = -1;
  for (int64_t pick = 0; pick < count; ++pick) {
    const uint16_t* __restrict t = table.t + picks[pick] * table.stride;
    for (int64_t i = 0; i < table.N; ++i) {
      owner[i] = t[i] > best[i] ? picks[pick] : owner[i];
      best[i] = t[i] > best[i] ? t[i] : best[i];
    }
  }
}

void rank_keys(uint64_t seed, uint64_t draw, uint64_t group_key, int64_t N, int64_t* __restrict keys) {
  const uint64_t stream = draw_stream(seed, draw, group_key);
  for (int64_t i = 0; i < N; ++i) keys[i] = static_cast<int64_t>(draw_key(stream, i));
}

// ranks[i] = how many of N distinct keys are smaller than keys[i]; quadratic, for groups of up to COUNTED_ROWS. Whole
// registers are read and written: both arrays reach to a multiple of 8.
MRT_INLINE void count_smaller(const int64_t* keys, int64_t N, int64_t* __restrict ranks) {
  typedef int64_t Lanes __attribute__((vector_size(64)));
  constexpr int WIDTH = 8;
  for (int64_t first = 0; first < N; first += WIDTH) {
    Lanes mine, rank{};
    memcpy(&mine, keys + first, sizeof mine);
    for (int64_t j = 0; j < N; ++j) rank -= keys[j] < mine;  // true is -1
    memcpy(ranks + first, &rank, sizeof rank);
  }
}

// The positions in ascending order of their keys. Keys of a group differ: the hash is a bijection of the position.
void sort_by_key(const int64_t* keys, int64_t N, int32_t* __restrict order) {
  int64_t ranks[COUNTED_ROWS];
  count_smaller(keys, N, ranks);
  for (int64_t i = 0; i < N; ++i) order[ranks[i]] = static_cast<int32_t>(i);
}

// The sum of the k largest values, negative ones counted as 0. |values| < 2^56.
int64_t sum_of_largest(const int64_t* values, int64_t N, int64_t k) {
  int64_t keys[COUNTED_ROWS] = {}, ranks[COUNTED_ROWS], sum = 0;
  for (int64_t i = 0; i < N; ++i) keys[i] = values[i] * COUNTED_ROWS + i;
  count_smaller(keys, N, ranks);
  for (int64_t i = 0; i < N; ++i) sum += ranks[i] >= N - k && values[i] > 0 ? values[i] : 0;
  return sum;
}

}  // namespace
}  // namespace mrt
