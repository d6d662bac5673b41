// The kernels of facility_location for one instruction set.
#pragma once

#include "facility_location/facility_location_kernels.h"
#include "facility_location/pair_table.h"
#include "facility_location/stream.h"

namespace mrt {
namespace {

constexpr FacilityLocationKernels facility_location_table() {
  FacilityLocationKernels table{};
  table.pairs = pairs;
  table.gains = gains;
  table.largest = largest;
  table.gain = gain;
  table.take = take;
  table.cover = cover;
  table.owners = owners;
  table.rank_keys = rank_keys;
  table.sort_by_key = sort_by_key;
  table.sum_of_largest = sum_of_largest;
  table.pairs_summed = pairs_summed;
  table.pairs_gained = pairs_gained;
  table.pairs_exceeding = pairs_exceeding;
  table.pairs_largest = pairs_largest;
  return table;
}

}  // namespace
}  // namespace mrt
