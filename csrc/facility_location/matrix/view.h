// A matrix of similarities as the caller holds it.
#pragma once

#include <cstdint>

namespace mrt {

enum class MatrixType { float32, float64, bfloat16, float16, uint16 };

struct MatrixView {
  const void* data;  // [M, N]: rows to cover, candidates
  MatrixType type;
  int64_t M, N;
  int64_t row_stride, column_stride;  // in elements
  double scale;                       // what counts as 1
};

}  // namespace mrt
