// out = a b^T in float32, from operands of any type and strides: what the heads of losses multiply with.
#pragma once

#include <cstdint>

#include "tile/features.h"

namespace mrt {

constexpr int COLUMNS = 2 * PANEL;  // of b, packed together

// Where a product goes: rows × columns of float32, `stride` apart. adds: to what lies there; else it begins with bias
// (one number per column), or with zero.
struct ProductTarget {
  float* out;
  int64_t stride, rows, columns;
  const float* bias;
  bool adds;
};

// Where the columns that come next lie: `count` runs of `bytes`, `stride` bytes apart.
struct Upcoming {
  const char* data;
  int64_t count, bytes, stride;
};

// a [M, K] and b [N, K]: float32, bfloat16 or float16. is_half: multiplied as bfloat16, to which wider ones are rounded.
struct MatmulProblem {
  Features a, b;
  int64_t M, N, K;
  bool is_half;
  float* out;
  int64_t stride;
  const float* bias;  // null: none
  bool adds;
};

constexpr int64_t MATMUL_WORKSPACE = 8 << 20;  // bytes, on a cache line: packed rows of a that the last cache holds

// Bits depend on the numbers of a row of a and a row of b and on K: neither on M, N, strides nor threads.
void matmul(const MatmulProblem& problem, void* workspace, int threads);

}  // namespace mrt
