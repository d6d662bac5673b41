// What neighbors asks of an instruction set; see scan.h.
#pragma once

#include "neighbors/neighbors.h"
#include "tile/panels.h"

namespace mrt {

// By one kind of score.
template <class Score>
struct ScanKernels {
  void (*scan)(const Panels& rows, const Panels& columns, int64_t U, Lists<Score>& lists, const Exclusion& exclusion,
               int64_t N);
  void (*scan_both)(const Panels& rows, const Panels& columns, int64_t U, Lists<Score>& row_lists,
                    Lists<Score>& column_lists, const Exclusion& exclusion, int64_t N);
  void (*scan_cell)(const Panels& rows, const Panels& columns, int64_t U, Lists<Score>& lists,
                    const Exclusion& exclusion, const Meeting& meeting);
  void (*cut)(Lists<Score>& lists, int64_t r, int64_t k, int64_t slack, Score margin);
};

struct NeighborsKernels {
  ScanKernels<int32_t> pairs;
  ScanKernels<float> floats;
  void (*connect)(const Panels& rows, const Panels& columns, int64_t U, int64_t N, int32_t threshold, PairFound found,
                  void* context);
};

// Those of the instruction set in use.
const NeighborsKernels& neighbors_kernels();

}  // namespace mrt
