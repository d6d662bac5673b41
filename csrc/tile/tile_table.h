// The kernels of the tile engine for one instruction set.
#pragma once

#include "tile/exact.h"
#include "tile/matmul.h"
#include "tile/operand.h"
#include "tile/pack.h"
#include "tile/peak.h"
#include "tile/tile_kernels.h"

namespace mrt {
namespace {

// HAS_DOT: whether this machine multiplies bfloat16.
template <bool HAS_DOT>
constexpr TileKernels tile_table() {
  using Half = Halves<HAS_DOT>;
  TileKernels table{};
  table.pack_lattice = pack_lattice;
  table.pack_floats = pack_floats;
  table.floats.lanes = FusedFloats::LANES;
  table.floats.pack = pack_panel<FloatUnits>;
  table.floats.multiply = multiply_panels<FusedFloats>;
  table.halves.lanes = Half::LANES;
  table.halves.pack = pack_panel<HalfUnits>;
  table.halves.multiply = multiply_panels<Half>;
  table.wide_row = wide_row;
  table.exact_dots = exact_sums<Products>;
  table.exact_distances = exact_sums<SquaredDifferences>;
  table.squares = squares;
  table.multiply_int16 = multiply_only<Pairs>;
  table.multiply_float32 = multiply_only<Floats>;
  table.multiply_bfloat16 = multiply_only<Half>;
  return table;
}

}  // namespace
}  // namespace mrt
