// The table of functions that each instruction set fills, and the choice among them.
#pragma once

#include "cross_entropy/cross_entropy.h"
#include "facility_location/facility_location.h"
#include "neighbors/neighbors.h"
#include "similarity/similarity.h"
#include "tile/matmul_problem.h"
#include "tile/panels.h"

namespace mrt {

// neighbors by one kind of score; see neighbors/kernels.h.
template <class Score>
struct ScanKernels {
  void (*scan)(const Panels& rows, const Panels& columns, int64_t U, Lists<Score>& lists, const Exclusion& exclusion,
               int64_t N);
  void (*scan_both)(const Panels& rows, const Panels& columns, int64_t U, Lists<Score>& row_lists,
                    Lists<Score>& column_lists, const Exclusion& exclusion, int64_t N);
  void (*cut)(Lists<Score>& lists, int64_t r, int64_t k, int64_t slack, Score margin);
};

struct Kernels {
  const char* name;
  // packing: see tile/pack.h
  int64_t (*pack_lattice)(const Lattice& lattice, const Features& x, int64_t first, int64_t count, float* converted,
                          Unit* staged, Unit* panels);
  int64_t (*pack_floats)(const Scaling& scaling, const Features& x, int64_t first, int64_t count, float* converted,
                         Unit* staged, Unit* panels);
  // products in float32 [0] and bfloat16 [1]: see tile/operand.h and tile/matmul.h
  void (*pack_operand[2])(const Features& x, int64_t row, int64_t lanes, int64_t first, int64_t count, Unit* out);
  int panel_lanes[2];  // rows of a panel
  void (*multiply_panels[2])(const Unit* panels, int64_t panel_stride, int64_t count, const Unit* columns,
                             int64_t units, const ProductTarget& target, const Upcoming& next);
  // the peak of this machine: see tile/peak.h
  int64_t (*multiply_int16)(int64_t flops);
  int64_t (*multiply_float32)(int64_t flops);
  int64_t (*multiply_bfloat16)(int64_t flops);
  // similarity: see similarity/kernels.h, direct.h and gradient.h
  void (*similarities)(const Panels& rows, const Panels& columns, int64_t U, const ScoreMatrix& to);
  bool (*direct_similarities)(const Features& x, float* scratch, const ScoreMatrix& to);
  void (*pack_features)(const Features& x, int64_t first, int64_t count, bool normalise, float* scratch, float* out);
  void (*pull)(const Pull& p);
  void (*finish_gradient)(const Pull& p, const Features& x, float* scratch, void* dx);
  // neighbors: see neighbors/kernels.h
  ScanKernels<int32_t> pairs_scan;
  ScanKernels<float> floats_scan;
  void (*connect)(const Panels& rows, const Panels& columns, int64_t U, int64_t N, int32_t threshold, PairFound found,
                  void* context);
  void (*exact_dots)(const double* x, const Features& y, const int32_t* ids, int64_t n, float* scratch, double* wide,
                     double* dots);
  void (*wide_row)(const Features& x, int64_t row, float* scratch, double* out);
  void (*squares)(const Features& x, int64_t first, int64_t count, float* scratch, double* wide, double* out);
  // facility_location: see facility_location/kernels.h
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
  void (*pairs_summed)(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule, uint16_t* t,
                       int64_t stride, int64_t* sums);
  void (*pairs_gained)(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule,
                       const uint16_t* best, int64_t* gains);
  void (*pairs_exceeding)(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule,
                          const uint16_t* best, PairKept kept, void* context);
  void (*pairs_largest)(const Panels& candidates, const Panels& covered, int64_t U, const PairRule& rule,
                        uint16_t* most);
  // cross_entropy: see cross_entropy/kernels.h
  RowStatistics (*row_statistics)(const void* logits, DType dtype, int64_t V, Transform transform, bool has_more,
                                  Exponentials out);
  void (*row_gradient)(const void* logits, void* gradient, DType dtype, int64_t V, Transform transform,
                       GradientRule rule);
  void (*row_scale)(const void* logits, void* gradient, DType dtype, int64_t V, Transform transform, GradientRule rule,
                    Exponentials from);
  int64_t (*row_argmax)(const void* row, DType dtype, int64_t V);
  Logit (*row_read)(const void* row, DType dtype, int64_t v, Transform transform);
  void (*row_write)(void* row, DType dtype, int64_t v, float value);
};

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx512_bf16_kernels;
#endif

// The widest path that this machine has and MRTKERN_ISA allows; decided at the first call, the same ever after.
const Kernels& kernels();
// Every path that this machine has, widest first; null after the last. `all` holds 5.
void available_kernels(const Kernels** all);

}  // namespace mrt
