// What the tile engine asks of an instruction set: packing, products, exact scores of rows, the peak of the machine.
#pragma once

#include "tile/features.h"
#include "tile/matmul_problem.h"

namespace mrt {

// Matrix products in one type of factors: see tile/operand.h and tile/matmul.h.
struct ProductKernels {
  int lanes;  // rows of a panel
  void (*pack)(const Features& x, int64_t row, int64_t lanes, int64_t first, int64_t count, Unit* out);
  void (*multiply)(const Unit* panels, int64_t panel_stride, int64_t count, const Unit* columns, int64_t units,
                   const ProductTarget& target, const Upcoming& next);
};

struct TileKernels {
  // see tile/pack.h
  int64_t (*pack_lattice)(const Lattice& lattice, const Features& x, int64_t first, int64_t count, float* converted,
                          Unit* staged, Unit* panels);
  int64_t (*pack_floats)(const Scaling& scaling, const Features& x, int64_t first, int64_t count, float* converted,
                         Unit* staged, Unit* panels);
  ProductKernels floats, halves;  // float32 and bfloat16
  // see tile/exact.h
  void (*wide_row)(const Features& x, int64_t row, float* scratch, double* out);
  void (*exact_dots)(const double* x, const Features& y, const int32_t* ids, int64_t n, float* scratch, double* wide,
                     double* dots);
  void (*exact_distances)(const double* x, const Features& y, const int32_t* ids, int64_t n, float* scratch,
                          double* wide, double* squares);
  void (*squares)(const Features& x, int64_t first, int64_t count, float* scratch, double* wide, double* out);
  // see tile/peak.h
  int64_t (*multiply_int16)(int64_t flops);
  int64_t (*multiply_float32)(int64_t flops);
  int64_t (*multiply_bfloat16)(int64_t flops);

  const ProductKernels& products(bool is_half) const { return is_half ? halves : floats; }
};

// Those of the instruction set in use.
const TileKernels& tile_kernels();

}  // namespace mrt
