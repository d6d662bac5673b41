// The tile loop: products of all pairs of rows of one packed block, 16 x 16 at a time, each tile handed to an epilogue.
//
// A tile is panel p times panel q; its sums stay in registers over all units. The block is symmetric, so only q >= p is
// computed and each tile is handed over twice: as it is, and transposed. Sums: units ascending; Pairs exact in
// int32, Floats one float32.
#pragma once

#include "tile/features.h"
#include "tile/vector.h"

namespace mrt {
namespace {

// tile[r][c] = sum over u of a[u][r] * b[u][c]
template <class Kind>
MRT_INLINE void multiply(const Unit* __restrict a, const Unit* __restrict b, int64_t U,
                         typename Kind::Sum* __restrict tile) {
  constexpr int ROWS = Kind::ROWS, PARTS = PANEL / Kind::WIDTH;
  for (int first = 0; first < PANEL; first += ROWS) {
    typename Kind::Register sum[ROWS][PARTS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < PARTS; ++v) sum[r][v] = Kind::zero();
    for (int64_t u = 0; u < U; ++u) {
      typename Kind::Register right[PARTS];
#pragma GCC unroll 4
      for (int v = 0; v < PARTS; ++v) right[v] = Kind::load(b + u * PANEL + v * Kind::WIDTH);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < PARTS; ++v) Kind::multiply_add(a + u * PANEL + first + r, right[v], sum[r][v]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < PARTS; ++v) Kind::store(tile + (first + r) * PANEL + v * Kind::WIDTH, sum[r][v]);
  }
}

// Calls epilogue(row0, column0, tile) for the tiles of panel row p: columns of panel q >= p, and the
// mirror images below them.
template <class Kind, class Epilogue>
MRT_INLINE void panel_row(const Unit* panels, int64_t N, int64_t U, int64_t p, const Epilogue& epilogue) {
  using Sum = typename Kind::Sum;
  alignas(64) Sum tile[PANEL * PANEL];
  alignas(64) Sum mirrored[PANEL * PANEL];
  for (int64_t q = p; q < num_panels(N); ++q) {
    multiply<Kind>(panels + p * U * PANEL, panels + q * U * PANEL, U, tile);
    epilogue(p * PANEL, q * PANEL, tile);
    if (q == p) continue;
    transpose(reinterpret_cast<const Unit*>(tile), PANEL, reinterpret_cast<Unit*>(mirrored));
    epilogue(q * PANEL, p * PANEL, mirrored);
  }
}

}  // namespace
}  // namespace mrt
