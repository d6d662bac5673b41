// similarity on the CPU: the epilogue that turns a tile of float32 products into similarities in the type of the input.
#pragma once

#include "similarity/similarity.h"
#include "similarity/store.h"
#include "tile/product.h"

namespace mrt {
namespace {

// The tile loop with squared differences in place of products.
struct Differences : Floats {
  static MRT_INLINE void multiply_add(Register a, Register b, Register& sum) {
    const Register difference = a - b;
    Floats::multiply_add(difference, difference, sum);
  }
};

// exp(x) for x <= 0 within two roundings: 2^n times a Taylor polynomial on |r| <= ln 2 / 2, whose next term is 5e-9.
MRT_INLINE float exponential(float x) {
  constexpr float INTEGERS = 0x1.8p23f;  // adding and subtracting it rounds to integers
  const float least = x > -104.0f ? x : -104.0f;
  const float n = (least * 0x1.715476p0f + INTEGERS) - INTEGERS;
  const float r =
      (least - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // ln 2 in two parts, the first short: n * it is exact
  const float high = ((1.0f / 5040 * r + 1.0f / 720) * r + 1.0f / 120) * r + 1.0f / 24;
  const float sum = (((high * r + 1.0f / 6) * r + 0.5f) * r + 1.0f) * r + 1.0f;
  const int32_t whole = static_cast<int32_t>(n), half = whole / 2;  // in two steps: 2^n alone may be subnormal
  const int32_t bits[2] = {(half + 127) << 23, (whole - half + 127) << 23};
  float power[2];
  memcpy(power, bits, sizeof power);
  return sum * power[0] * power[1];
}

// Rounding may push a cosine beyond ±1; a NaN (a dot product that overflowed both ways) passes through.
MRT_INLINE void to_scores(const ScoreMatrix& to, const float* __restrict products, float* __restrict s) {
  const float lowest = to.metric == Metric::clamped_cosine ? 0.0f : -1.0f;
  if (to.metric == Metric::dot) {
    memcpy(s, products, TILE * sizeof *s);
  } else if (to.metric == Metric::rbf) {
    for (int i = 0; i < TILE; ++i) s[i] = exponential(-to.gamma * products[i]);
  } else {
    for (int i = 0; i < TILE; ++i) s[i] = products[i] > 1.0f ? 1.0f : products[i] < lowest ? lowest : products[i];
    if (to.metric == Metric::shifted_cosine)
      for (int i = 0; i < TILE; ++i) s[i] = (1.0f + s[i]) * 0.5f;
  }
}

struct Store {
  ScoreMatrix to;

  MRT_INLINE void operator()(int64_t row, int64_t column, const float* tile) const {
    alignas(64) float s[TILE];
    to_scores(to, tile, s);
    const int64_t rows = to.M - row < PANEL ? to.M - row : PANEL,
                  columns = to.N - column < PANEL ? to.N - column : PANEL;
    for (int64_t r = 0; r < rows; ++r)
      store_row(s + r * PANEL, columns, to.dtype, to.is_streamed, to.s, (row + r) * to.N + column);
  }
};

template <class Kind>
MRT_INLINE void store_tiles(const Panels& rows, const Panels& columns, int64_t U, const ScoreMatrix& to) {
  const Store store{to};
  if (!to.is_mirrored) return tiles<Kind>(rows, columns, U, false, store);
  tiles<Kind>(rows, columns, U, rows.first == columns.first, Mirrored<float, Store>{store});
}

// Scores of some panels with some others; mirrored: both of one matrix, the same ones or rows before columns.
void similarities(const Panels& rows, const Panels& columns, int64_t U, const ScoreMatrix& to) {
  to.metric == Metric::rbf ? store_tiles<Differences>(rows, columns, U, to) : store_tiles<Floats>(rows, columns, U, to);
  if (to.is_streamed) finish_streams();
}

}  // namespace
}  // namespace mrt
