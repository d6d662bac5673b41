// What is done to gradients of a head beside products: sums of columns, one factor and one rounding.
#pragma once

#include <cstdint>

#include "tile/features.h"

namespace mrt {

// total [V] += the sums of the columns of z [C, V], each a float64 sum, rows ascending, rounded once.
void add_column_sums(const float* z, int64_t stride, int64_t C, int64_t V, float* total, int threads);

// out = gradient * factor, rounded to float32 and then to `dtype`; out may be the gradient.
void scale(const float* gradient, void* out, DType dtype, int64_t count, float factor, int threads);

}  // namespace mrt
