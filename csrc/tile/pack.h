// Packing: rows of any type and stride become panels of 16 rows, in one read of the input.
//
//   lattice   q = rint(x * (r / |x|)), two int16 a unit (the definition is mrtkern/lattice.py)
//   floats    x, or x / |x|, one float32 a unit
//
// Norms are float64 sums of exact squares: 16 interleaved lanes ascending, then lanes by halves. Padding is zero.
#pragma once

#include <cmath>

#include "tile/convert.h"
#include "tile/features.h"
#include "tile/vector.h"

namespace mrt {
namespace {

constexpr int LANES = 16;

// A float64 row times the power of two that brings its largest component to about 1: directions only.
template <class T>
MRT_INLINE void scale_to_one(const double* in, int64_t D, int64_t step, T* __restrict out) {
  double largest = 0.0;
  for (int64_t d = 0; d < D; ++d) {
    const double magnitude = in[d * step] < 0 ? -in[d * step] : in[d * step];
    largest = magnitude > largest ? magnitude : largest;
  }
  int exponent = 0;
  std::frexp(largest, &exponent);
  const int half = exponent >> 1;  // in two steps: 2^-exponent alone can overflow
  const double first = std::ldexp(1.0, -half), second = std::ldexp(1.0, half - exponent);
  for (int64_t d = 0; d < D; ++d) out[d] = static_cast<T>(in[d * step] * first * second);
}

// Row of x as float32: where it lies if it is contiguous float32, else converted into `scratch`.
MRT_INLINE const float* load_row(const Features& x, int64_t row, float* __restrict scratch) {
  const int64_t D = x.columns, step = x.column_stride;
  if (x.dtype == DType::float32) {
    const float* in = static_cast<const float*>(x.data) + row * x.row_stride;
    if (step == 1) return in;
    for (int64_t d = 0; d < D; ++d) scratch[d] = in[d * step];
    return scratch;
  }
  if (x.dtype == DType::float64) {
    scale_to_one(static_cast<const double*>(x.data) + row * x.row_stride, D, step, scratch);
    return scratch;
  }
  const uint16_t* in = static_cast<const uint16_t*>(x.data) + row * x.row_stride;
  if (x.dtype == DType::bfloat16 && step == 1) {
    for (int64_t d = 0; d < D; ++d) scratch[d] = from_bfloat16(in[d]);
  } else if (x.dtype == DType::bfloat16) {
    for (int64_t d = 0; d < D; ++d) scratch[d] = from_bfloat16(in[d * step]);
  } else {
    for (int64_t d = 0; d < D; ++d) scratch[d] = from_float16(in[d * step]);
  }
  return scratch;
}

MRT_INLINE double squared_norm(const float* __restrict x, int64_t D) {
  Squares squares;
  int64_t d = 0;
  for (; d + LANES <= D; d += LANES) squares.add(x + d);
  if (d < D) {
    float rest[LANES] = {};
    memcpy(rest, x + d, (D - d) * sizeof *x);
    squares.add(rest);
  }
  return squares.total();
}

// On the coarse lattice components beyond 2048 are rounded to even integers. Only they can round to 2048 or more, and
// few rows have one.
MRT_INLINE void quantise_row(const float* __restrict x, int64_t D, double scale, bool is_coarse,
                             int16_t* __restrict q) {
  constexpr double EVENS = 0x1.8p53;  // adding and subtracting it rounds to even integers, half to even
  Rounder rounder(scale);
  int64_t d = 0;
  for (; d + LANES <= D; d += LANES) rounder.round(x + d, q + d);
  if (d < D) {
    float rest[LANES] = {};
    int16_t rounded[LANES];
    memcpy(rest, x + d, (D - d) * sizeof *x);
    rounder.round(rest, rounded);
    memcpy(q + d, rounded, (D - d) * sizeof *q);
  }
  if (!is_coarse || !rounder.exceeds(2047)) return;
  for (d = 0; d < D; ++d) {
    const double v = static_cast<double>(x[d]) * scale;
    if (v > 2048.0 || v < -2048.0) q[d] = static_cast<int16_t>((v + EVENS) - EVENS);
  }
}

MRT_INLINE void scale_row(const float* __restrict x, int64_t D, double scale, float* __restrict out) {
  for (int64_t d = 0; d < D; ++d) out[d] = static_cast<float>(static_cast<double>(x[d]) * scale);
}

// What a panel is made of: units of a row, and a row written into them from its features and its norm.
struct LatticeRows {
  Lattice lattice;
  MRT_INLINE int64_t units(int64_t D) const { return (D + 1) / 2; }
  MRT_INLINE void write(const float* x, int64_t D, double norm, Unit* out) const {
    const double length = lattice.length > 0 ? lattice.length : norm;
    quantise_row(x, D, norm > 0 ? lattice.radius / length : 0.0, lattice.is_coarse, reinterpret_cast<int16_t*>(out));
  }
};

struct FloatRows {
  Scaling scaling;
  MRT_INLINE int64_t units(int64_t D) const { return D; }
  MRT_INLINE void write(const float* x, int64_t D, double norm, Unit* out) const {
    const double length = scaling.length > 0 ? scaling.length : norm;
    const double scale = !scaling.normalise ? 1.0 : norm > 0 ? 1.0 / length : 0.0;
    scale_row(x, D, scale, reinterpret_cast<float*>(out));
  }
};

// Asks for one half of a row that will be packed soon. In halves, because a burst of a whole row fills the
// queue to memory.
MRT_INLINE void prefetch_half_row(const Features& x, int64_t row, int half) {
  const int64_t size = element_size(x.dtype);
  if (x.column_stride != 1) return;
  const int64_t middle = x.columns * size / 2 / 64 * 64;
  const char* start = static_cast<const char*>(x.data) + row * x.row_stride * size;
  const int64_t end = half == 0 ? middle : x.columns * size;
  for (int64_t byte = half == 0 ? 0 : middle; byte < end; byte += 64) __builtin_prefetch(start + byte, 0, 2);
}

// Packs rows first … first + count - 1. Scratch: `converted` [16 D] floats; `staged` 16 rows of round_up(units, 16)
// units, zeroed by the caller once. Returns the first row that holds NaN or infinity, or -1.
template <class Rows>
MRT_INLINE int64_t pack(const Rows& rows, const Features& x, int64_t first, int64_t count, float* converted,
                        Unit* staged, Unit* panels) {
  const int64_t D = x.columns, U = rows.units(D), stride = round_up(U, PANEL);
  for (int64_t p = 0; p < num_panels(count); ++p) {
    const int num_rows = static_cast<int>(count - p * PANEL < PANEL ? count - p * PANEL : PANEL);
    const float* in[PANEL];
    double square[PANEL];
    for (int r = 0; r <= num_rows; ++r) {
      if (r < num_rows) {
        in[r] = load_row(x, first + p * PANEL + r, converted + r * D);
        square[r] = squared_norm(in[r], D);
        prefetch_half_row(x, first + (p + 1) * PANEL + r, 0);
      }
      if (r == 0) continue;
      if (!(square[r - 1] < HUGE_VAL)) return first + p * PANEL + r - 1;
      prefetch_half_row(x, first + (p + 1) * PANEL + r - 1, 1);
      rows.write(in[r - 1], D, std::sqrt(square[r - 1]), staged + (r - 1) * stride);
    }
    for (int r = num_rows; r < PANEL; ++r) memset(staged + r * stride, 0, U * sizeof *staged);
    Unit* panel = panels + p * U * PANEL;
    alignas(64) Unit block[PANEL * PANEL];
    for (int64_t u = 0; u < U; u += PANEL) {
      const bool is_whole = u + PANEL <= U;
      transpose(staged + u, stride, is_whole ? panel + u * PANEL : block);
      if (!is_whole) memcpy(panel + u * PANEL, block, (U - u) * PANEL * sizeof *block);
    }
  }
  return -1;
}

int64_t pack_lattice(const Lattice& lattice, const Features& x, int64_t first, int64_t count, float* converted,
                     Unit* staged, Unit* panels) {
  return pack(LatticeRows{lattice}, x, first, count, converted, staged, panels);
}

int64_t pack_floats(const Scaling& scaling, const Features& x, int64_t first, int64_t count, float* converted,
                    Unit* staged, Unit* panels) {
  return pack(FloatRows{scaling}, x, first, count, converted, staged, panels);
}

}  // namespace
}  // namespace mrt
