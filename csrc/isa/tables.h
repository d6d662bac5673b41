// Compiles every operation's kernels for one instruction set. Included once by each csrc/isa/<name>.cpp after its MRT_
// switch.
#pragma once

#include "cross_entropy/cross_entropy_table.h"
#include "facility_location/facility_location_table.h"
#include "isa/path.h"
#include "neighbors/neighbors_table.h"
#include "similarity/similarity_table.h"
#include "tile/tile_table.h"

namespace mrt {
namespace {

// A constant, so that no code of an instruction set runs before one was chosen.
template <bool HAS_DOT = false>
constexpr Path path(const char* name) {
  Path path{};
  path.name = name;
  path.tile = tile_table<HAS_DOT>();
  path.cross_entropy = cross_entropy_table();
  path.facility_location = facility_location_table();
  path.neighbors = neighbors_table();
  path.similarity = similarity_table();
  return path;
}

}  // namespace
}  // namespace mrt
