// The kernels of facility_location for one instruction set.
#pragma once

#include "facility_location/facility_location_kernels.h"
#include "facility_location/features/pairs.h"
#include "facility_location/list_gain.h"
#include "facility_location/matrix/rows.h"
#include "facility_location/matrix/steps.h"
#include "facility_location/pair_table.h"

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
  table.pairs_stored = pairs_stored;
  table.pairs_gained = pairs_gained;
  table.pairs_exceeding = pairs_exceeding;
  table.pairs_owned = pairs_owned;
  table.excess = row_excess;
  table.reach = row_reach;
  table.own = row_own;
  table.list_gain = list_gain;
  table.matrix_steps = matrix_steps;
  return table;
}

}  // namespace
}  // namespace mrt
