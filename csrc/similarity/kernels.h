// similarity on the CPU: the epilogue that stores a tile of float32 products as similarities in the type of the input.
#pragma once

#include "similarity/similarity.h"
#include "tile/product.h"

namespace mrt {
namespace {

// Round to nearest, half to even; beyond the largest infinity, NaN stays NaN.
MRT_INLINE uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Round to nearest, half to even, subnormals included; beyond 65519 infinity, NaN stays NaN.
MRT_INLINE uint16_t to_float16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return 0x7e00;
  const uint32_t sign = (bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (bits < 0x38800000) {  // subnormal in float16: let a float32 addition round at 2^-24
    memcpy(&value, &bits, sizeof value);
    value += 0.5f;
    memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return static_cast<uint16_t>(sign | ((bits - 0x38000000) >> 13));
}

// Rounding may push a cosine beyond ±1; a NaN (a dot product that overflowed both ways) passes through.
MRT_INLINE float score(Metric metric, float product) {
  if (metric == Metric::dot) return product;
  const float lowest = metric == Metric::clamped_cosine ? 0.0f : -1.0f;
  const float cosine = product > 1.0f ? 1.0f : product < lowest ? lowest : product;
  return metric == Metric::shifted_cosine ? (1.0f + cosine) * 0.5f : cosine;
}

struct Store {
  int64_t N;
  Metric metric;
  DType dtype;
  void* out;

  MRT_INLINE void operator()(int64_t row, int64_t column, const float* tile) const {
    const int64_t rows = N - row < PANEL ? N - row : PANEL, columns = N - column < PANEL ? N - column : PANEL;
    for (int64_t r = 0; r < rows; ++r) {
      const float* products = tile + r * PANEL;
      const int64_t first = (row + r) * N + column;
      for (int64_t c = 0; c < columns; ++c) {
        const float s = score(metric, products[c]);
        if (dtype == DType::float32) {
          static_cast<float*>(out)[first + c] = s;
        } else {
          static_cast<uint16_t*>(out)[first + c] = dtype == DType::bfloat16 ? to_bfloat16(s) : to_float16(s);
        }
      }
    }
  }
};

void similarities(const Unit* panels, int64_t N, int64_t D, int64_t p, Metric metric, DType dtype, void* out) {
  panel_row<Floats>(panels, N, D, p, Store{N, metric, dtype, out});
}

}  // namespace
}  // namespace mrt
