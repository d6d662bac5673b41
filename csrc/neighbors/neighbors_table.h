// The kernels of neighbors for one instruction set.
#pragma once

#include "neighbors/neighbors_kernels.h"
#include "neighbors/scan.h"

namespace mrt {
namespace {

template <class Kind>
constexpr ScanKernels<typename Kind::Sum> scan_table() {
  ScanKernels<typename Kind::Sum> table{};
  table.scan = scan<Kind>;
  table.scan_both = scan_both<Kind>;
  table.scan_cell = scan_cell<Kind>;
  table.cut = cut<typename Kind::Sum>;
  return table;
}

constexpr NeighborsKernels neighbors_table() {
  NeighborsKernels table{};
  table.pairs = scan_table<Pairs>();
  table.floats = scan_table<Floats>();
  table.connect = connect;
  return table;
}

}  // namespace
}  // namespace mrt
