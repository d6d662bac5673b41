// What cross_entropy asks of an instruction set; see rows.h.
#pragma once

#include "cross_entropy/cross_entropy.h"

namespace mrt {

struct CrossEntropyKernels {
  RowStatistics (*row_statistics)(const void* logits, DType dtype, int64_t V, Transform transform, bool has_more,
                                  Exponentials out);
  void (*row_gradient)(const void* logits, void* gradient, DType dtype, int64_t V, Transform transform,
                       GradientRule rule);
  void (*row_scale)(const void* logits, void* gradient, DType dtype, int64_t V, Transform transform, GradientRule rule,
                    Exponentials from);
  int64_t (*row_argmax)(const void* row, DType dtype, int64_t V);
  Logit (*row_read)(const void* row, DType dtype, int64_t v, Transform transform);
  void (*row_write)(void* row, DType dtype, int64_t v, float value);
};

// Those of the instruction set in use.
const CrossEntropyKernels& cross_entropy_kernels();

}  // namespace mrt
