// Compiles every operation's kernels for one instruction set. Included once by each csrc/isa/<name>.cpp
// after its MRT_ switch.
#pragma once

#include "cross_entropy/kernels.h"
#include "facility_location/kernels.h"
#include "facility_location/stream.h"
#include "isa/kernels.h"
#include "neighbors/kernels.h"
#include "similarity/direct.h"
#include "similarity/gradient.h"
#include "similarity/kernels.h"
#include "tile/matmul.h"
#include "tile/operand.h"
#include "tile/pack.h"
#include "tile/peak.h"

namespace mrt {
namespace {

int64_t pack_lattice(const Lattice& lattice, const Features& x, int64_t first, int64_t count, float* converted,
                     Unit* staged, Unit* panels) {
  return pack(LatticeRows{lattice}, x, first, count, converted, staged, panels);
}

int64_t pack_floats(const Scaling& scaling, const Features& x, int64_t first, int64_t count, float* converted,
                    Unit* staged, Unit* panels) {
  return pack(FloatRows{scaling}, x, first, count, converted, staged, panels);
}

// HAS_DOT: whether this machine multiplies bfloat16.
template <bool HAS_DOT = false>
constexpr Kernels table(const char* name) {
  return {name,
          pack_lattice,
          pack_floats,
          {pack_panel<FloatUnits>, pack_panel<HalfUnits>},
          {FusedFloats::LANES, Halves<HAS_DOT>::LANES},
          {multiply_panels<FusedFloats>, multiply_panels<Halves<HAS_DOT>>},
          multiply_only<Pairs>,
          multiply_only<Floats>,
          multiply_only<Halves<HAS_DOT>>,
          similarities,
          direct_similarities,
          pack_features,
          pull,
          finish_gradient,
          {scan<Pairs>, scan_both<Pairs>, cut<int32_t>},
          {scan<Floats>, scan_both<Floats>, cut<float>},
          connect,
          exact_dots,
          wide_row,
          squares,
          pairs,
          gains,
          largest,
          gain,
          take,
          cover,
          owners,
          rank_keys,
          sort_by_key,
          sum_of_largest,
          pairs_summed,
          pairs_gained,
          pairs_exceeding,
          pairs_largest,
          row_statistics,
          row_gradient,
          row_scale,
          row_argmax,
          row_read,
          row_write};
}

}  // namespace
}  // namespace mrt
