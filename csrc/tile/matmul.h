// Matrix products: one call multiplies panels of packed rows with 32 packed columns over one chunk of k.
//
// Idea   the columns stay in the first-level cache while the rows' panels stream past them from the second; the tile of
//        sums stays in registers from its first unit to its last and meets memory once per chunk.
// Sums   a chunk from zero, units ascending, each product fused with its addition; chunks are added in their order.
#pragma once

#include "tile/factors.h"
#include "tile/matmul_problem.h"

namespace mrt {
namespace {

// out [ROWS, VECTORS] = start + the sums over `units` of rows a and columns b, which lie `apart` units from one register
// to the next. Not inlined: in the midst of its driver gcc 12 copies the sums around and half of the rate is lost.
template <class Kind>
__attribute__((noinline)) void multiply_tile(const Unit* __restrict a, const Unit* __restrict b, int64_t apart,
                                             int64_t units, const float* start, int64_t start_stride, float* out,
                                             int64_t stride) {
  constexpr int64_t AHEAD = 16;  // units of a asked for before their turn
  typename Kind::Register sum[Kind::ROWS][Kind::VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < Kind::ROWS; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Kind::VECTORS; ++v) sum[r][v] = Kind::zero();
    __builtin_prefetch(out + r * stride, 0, 2);
    __builtin_prefetch(out + r * stride + Kind::VECTORS * Kind::WIDTH - 1, 0, 2);
  }
  const Flushing<Kind> flushing;
#pragma GCC unroll 1
  for (int64_t u = 0; u < units; ++u, a += PANEL, b += PANEL) {
    __builtin_prefetch(a + AHEAD * PANEL);
    typename Kind::Register right[Kind::VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < Kind::VECTORS; ++v) right[v] = Kind::load(b + v * apart);
#pragma GCC unroll 16
    for (int r = 0; r < Kind::ROWS; ++r) {
      const typename Kind::Register left = Kind::broadcast(a + r);
#pragma GCC unroll 4
      for (int v = 0; v < Kind::VECTORS; ++v) Kind::multiply_add(left, right[v], sum[r][v]);
    }
  }
  flushing.end();
#pragma GCC unroll 16
  for (int r = 0; r < Kind::ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Kind::VECTORS; ++v) {
      settle(sum[r][v]);
      Kind::store_sum(out + r * stride + v * Kind::WIDTH, start + r * start_stride + v * Kind::WIDTH, sum[r][v]);
    }
}

// All LANES rows of a panel with all COLUMNS.
template <class Kind>
MRT_INLINE void multiply_panel(const Unit* panel, const Unit* columns, int64_t units, const float* start,
                               int64_t start_stride, float* out, int64_t stride) {
  constexpr int WIDE = Kind::VECTORS * Kind::WIDTH;
  static_assert(COLUMNS % WIDE == 0 && Kind::LANES % Kind::ROWS == 0 && Kind::LANES <= PANEL, "whole tiles");
  const int64_t apart = Kind::WIDTH == PANEL ? units * PANEL : Kind::WIDTH;
  for (int c = 0; c < COLUMNS; c += WIDE)
    for (int r = 0; r < Kind::LANES; r += Kind::ROWS)
      multiply_tile<Kind>(panel + r, columns + c / PANEL * units * PANEL + c % PANEL, apart, units,
                          start + r * start_stride + c, start_stride, out + r * stride + c, stride);
}

// Asks for one part in `parts` of what comes next, so that it is in the second-level cache when its turn comes.
MRT_INLINE void prefetch(const Upcoming& next, int64_t part, int64_t parts) {
  for (int64_t i = next.count * part / parts; i < next.count * (part + 1) / parts; ++i) {
    const char* const run = next.data + i * next.stride;
    for (int64_t byte = 0; byte < next.bytes; byte += 64) __builtin_prefetch(run + byte, 0, 2);
    __builtin_prefetch(run + next.bytes - 1, 0, 2);
  }
}

// Rows of panels … panels + count - 1, each `panel_stride` units after the one before, with the columns packed in
// `columns` over `units` units; see ProductTarget. Meanwhile `next` is asked for.
template <class Kind>
void multiply_panels(const Unit* panels, int64_t panel_stride, int64_t count, const Unit* columns, int64_t units,
                     const ProductTarget& to, const Upcoming& next) {
  alignas(64) float first[COLUMNS] = {}, edge[PANEL * COLUMNS] = {};
  if (to.bias != nullptr) memcpy(first, to.bias, to.columns * sizeof *first);
  for (int64_t p = 0; p < count; ++p) {
    const int64_t row = p * Kind::LANES, rows = to.rows - row < Kind::LANES ? to.rows - row : Kind::LANES;
    float* const out = to.out + row * to.stride;
    const Unit* const panel = panels + p * panel_stride;
    prefetch(next, p, count);
    if (rows == Kind::LANES && to.columns == COLUMNS) {
      multiply_panel<Kind>(panel, columns, units, to.adds ? out : first, to.adds ? to.stride : 0, out, to.stride);
      continue;
    }
    for (int64_t r = 0; r < rows; ++r)
      memcpy(edge + r * COLUMNS, to.adds ? out + r * to.stride : first, to.columns * sizeof *edge);
    multiply_panel<Kind>(panel, columns, units, edge, COLUMNS, edge, COLUMNS);
    for (int64_t r = 0; r < rows; ++r) memcpy(out + r * to.stride, edge + r * COLUMNS, to.columns * sizeof *edge);
  }
}

}  // namespace
}  // namespace mrt
