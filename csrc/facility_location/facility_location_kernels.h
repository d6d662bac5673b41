// What facility_location asks of an instruction set.
#pragma once

#include "facility_location/facility_location.h"
#include "tile/panels.h"

namespace mrt {

struct FacilityLocationKernels {
  // see pair_table.h
  void (*pairs)(const Unit* panels, int64_t U, int64_t p, int32_t base, const float* unit, const float* quality,
                const PairTable& table);
  void (*gains)(const PairTable& table, const uint16_t* best, const int64_t* bonus, const int64_t* open, int64_t* out);
  int64_t (*largest)(const int64_t* values, int64_t N);
  int32_t (*gain)(const PairTable& table, const uint16_t* best, int64_t j);
  void (*take)(const PairTable& table, int64_t j, uint16_t* best);
  int64_t (*cover)(const PairTable& table, const int32_t* picks, int64_t count);
  void (*owners)(const PairTable& table, const int32_t* picks, int64_t count, uint16_t* best, int32_t* owner);
  void (*rank_keys)(uint64_t seed, uint64_t draw, uint64_t group_key, int64_t N, int64_t* keys);
  void (*sort_by_key)(const int64_t* keys, int64_t N, int32_t* order);
  int64_t (*sum_of_largest)(const int64_t* values, int64_t N, int64_t k);
  // see stream.h
  void (*pairs_summed)(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule, uint16_t* t,
                       int64_t stride, int64_t* sums);
  void (*pairs_gained)(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule,
                       const uint16_t* best, int64_t* gains);
  void (*pairs_exceeding)(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule,
                          const uint16_t* best, PairKept kept, void* context);
  void (*pairs_largest)(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule,
                        uint16_t* most);
};

// Those of the instruction set in use.
const FacilityLocationKernels& facility_location_kernels();

}  // namespace mrt
