// What facility_location asks of an instruction set.
#pragma once

#include "facility_location/features/pair_block.h"
#include "facility_location/matrix/view.h"

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
  // see features/pairs.h
  void (*pairs_stored)(const PairBlock& block, const PairRule& rule, uint16_t* t, int64_t stride,
                       const GainLanes& lanes);
  void (*pairs_gained)(const PairBlock& block, const PairRule& rule, const uint16_t* reached, const GainLanes& lanes);
  void (*pairs_exceeding)(const PairBlock& block, const PairRule& rule, const uint16_t* reached, const uint8_t* is_open,
                          KeptPairs& kept);
  void (*pairs_owned)(const PairBlock& block, const PairRule& rule, int32_t* reached, int32_t* owner);
  // see matrix/rows.h
  int64_t (*excess)(const uint16_t* t, const uint16_t* reached, int64_t count);
  void (*reach)(const uint16_t* t, int64_t count, uint16_t* reached);
  void (*own)(const uint16_t* t, int64_t count, int32_t k, uint16_t* reached, int32_t* owner);
  // see list_gain.h
  int64_t (*list_gain)(uint32_t* list, int64_t* length, const uint16_t* reached);
  // see matrix/steps.h
  void (*matrix_steps)(const MatrixView& s, const PairRule& rule, int64_t j, int64_t i, uint16_t* t, int64_t stride);
};

// Those of the instruction set in use.
const FacilityLocationKernels& facility_location_kernels();

}  // namespace mrt
