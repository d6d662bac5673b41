// Scores of rows in float64, in the order of squared_norm in tile/pack.h: 16 interleaved lanes, then by halves.
#pragma once

#include "tile/pack.h"

namespace mrt {
namespace {

constexpr int64_t AHEAD = 3;  // rows fetched before their product is due

// Sixteen interleaved float64 sums of what Terms makes of two features; a product of two of at most 24 bits is exact.
template <class Terms, class T>
MRT_INLINE double summed(const double* __restrict x, const T* __restrict y, int64_t D) {
  Terms terms;
  int64_t d = 0;
  for (; d + LANES <= D; d += LANES) terms.add(x + d, y + d);
  if (d < D) {
    double rest[LANES] = {};
    T other[LANES] = {};
    memcpy(rest, x + d, (D - d) * sizeof *x);
    memcpy(other, y + d, (D - d) * sizeof *y);
    terms.add(rest, other);
  }
  return terms.total();
}

// Row of x as float64, a float64 row times the power of two that brings its largest component to about 1. `scratch`
// holds D floats.
void wide_row(const Features& x, int64_t row, float* scratch, double* __restrict out) {
  if (x.dtype == DType::float64) {
    scale_to_one(static_cast<const double*>(x.data) + row * x.row_stride, x.columns, x.column_stride, out);
    return;
  }
  const float* in = load_row(x, row, scratch);
  for (int64_t d = 0; d < x.columns; ++d) out[d] = in[d];
}

// sums[i] = the sum of Terms of x and row ids[i] of y. Scratch: D floats and D doubles.
template <class Terms>
void exact_sums(const double* x, const Features& y, const int32_t* ids, int64_t n, float* scratch, double* wide,
                double* sums) {
  for (int64_t i = 0; i < n; ++i) {
    if (i + AHEAD < n) prefetch_half_row(y, ids[i + AHEAD], 0), prefetch_half_row(y, ids[i + AHEAD], 1);
    if (y.dtype == DType::float64) {
      wide_row(y, ids[i], scratch, wide);
      sums[i] = summed<Terms>(x, wide, y.columns);
    } else {
      sums[i] = summed<Terms>(x, load_row(y, ids[i], scratch), y.columns);
    }
  }
}

// squares[i] = |row first + i|^2, float64; of the scaled row where wide_row scales.
void squares(const Features& x, int64_t first, int64_t count, float* scratch, double* wide, double* out) {
  for (int64_t i = 0; i < count; ++i) {
    wide_row(x, first + i, scratch, wide);
    out[i] = summed<Products>(wide, wide, x.columns);
  }
}

}  // namespace
}  // namespace mrt
