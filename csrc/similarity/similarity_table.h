// The kernels of similarity for one instruction set.
#pragma once

#include "similarity/direct.h"
#include "similarity/gradient.h"
#include "similarity/scores.h"
#include "similarity/similarity_kernels.h"

namespace mrt {
namespace {

constexpr SimilarityKernels similarity_table() {
  SimilarityKernels table{};
  table.similarities = similarities;
  table.direct_similarities = direct_similarities;
  table.pack_features = pack_features;
  table.pull = pull;
  table.finish_gradient = finish_gradient;
  return table;
}

}  // namespace
}  // namespace mrt
