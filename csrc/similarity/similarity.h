// Similarity of all pairs inside each group of packed rows.
#pragma once

#include <cstdint>

#include "tile/features.h"

namespace mrt {

// out: group b's N_b x N_b matrix at the sum of the squares before it, row-major, in the type of x. Returns the first
// row that holds NaN or infinity, or -1. Throws Interrupted, OutOfMemory.
int64_t similarity_ragged(const Features& x, int64_t num_groups, const int64_t* offsets, Metric metric, void* out,
                          int threads);

}  // namespace mrt
