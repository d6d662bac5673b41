// Facility location per group on a GPU: the contract between the binding and the launch. Problem and result are those of
// facility_location.h, with addresses of device memory.
#pragma once

#include <cstdint>

#include "common/cuda.h"
#include "facility_location/facility_location.h"

namespace mrt {

struct DeviceScratch {
  const int64_t* slots;  // [B] where a group's picks begin in ids, gains and share
  unsigned long long*
      bad_row;  // 2^64 - 1; becomes the lowest row that holds NaN or infinity, and then nothing else counts
  unsigned char* workspace;  // as many bytes as select_groups_workspace says
};

// Bytes of device memory for groups of up to `largest` rows.
int64_t select_groups_workspace(int64_t num_groups, int64_t largest, int64_t D, int device);

// One launch for groups that a warp holds and one for others, each where there are such; returns before they have run.
void select_groups_on_device(const SelectionProblem& problem, const SelectionResult& result,
                             const DeviceScratch& scratch, int64_t largest, const CudaStream& stream);

}  // namespace mrt
