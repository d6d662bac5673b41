// What similarity asks of an instruction set.
#pragma once

#include "similarity/similarity.h"
#include "tile/panels.h"

namespace mrt {

struct SimilarityKernels {
  // see scores.h and direct.h
  void (*similarities)(const Panels& rows, const Panels& columns, int64_t U, const ScoreMatrix& to);
  bool (*direct_similarities)(const Features& x, float* scratch, const ScoreMatrix& to);
  // see gradient.h
  void (*pack_features)(const Features& x, int64_t first, int64_t count, bool normalise, float* scratch, float* out);
  void (*pull)(const Pull& p);
  void (*finish_gradient)(const Pull& p, const Features& x, float* scratch, void* dx);
};

// Those of the instruction set in use.
const SimilarityKernels& similarity_kernels();

}  // namespace mrt
