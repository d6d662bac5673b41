// The paths through the machine, one per instruction set, and the one in use. Operations do not include this: each
// declares its own table and the accessor of it (<op>/<op>_kernels.h), which choose.cpp defines.
#pragma once

#include "cross_entropy/cross_entropy_kernels.h"
#include "facility_location/facility_location_kernels.h"
#include "neighbors/neighbors_kernels.h"
#include "similarity/similarity_kernels.h"
#include "tile/tile_kernels.h"

namespace mrt {

struct Path {
  const char* name;
  TileKernels tile;
  CrossEntropyKernels cross_entropy;
  FacilityLocationKernels facility_location;
  NeighborsKernels neighbors;
  SimilarityKernels similarity;
};

extern const Path portable_path;
#if defined(__x86_64__)
extern const Path avx2_path;
extern const Path avx512_path;
extern const Path avx512_bf16_path;
#endif

constexpr int MOST_PATHS = 4;

// The widest path that this machine has and MRTKERN_ISA allows; decided at the first call, the same ever after.
const Path& path_in_use();
// Every path that this machine has, widest first; null after the last. `all` holds MOST_PATHS + 1.
void available_paths(const Path** all);

}  // namespace mrt
