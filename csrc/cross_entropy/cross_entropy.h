// Cross-entropy of rows of logits: the contract between the binding, the loop over rows and the kernels.
// Definitions: mrtkern/ops/cross_entropy/__init__.py and reference.py.
//
// A row has one target, or the entries target_offsets[t] … target_offsets[t + 1] of several. With u = scale * cap(z):
//
//     lse = log sum_v exp(u_v),   nll = lse - u_y,   H = lse - sum_v p_v u_v,   p_v = exp(u_v - lse)
//     l_e = (1 - smoothing) nll_e + smoothing (lse - mean_v u_v) + z_loss lse^2
//     L   = sum_e w_e l_e + sum_t h_t H_t
//
// and the gradient dL/dz replaces the logits or fills a matrix of its own, rounded once to their type.
#pragma once

#include <cstdint>

#include "tile/features.h"

namespace mrt {

struct LogitRows {
  const void* logits;  // [T, V], columns adjacent, rows logits_stride elements apart (0 is allowed without gradient)
  void* gradient;      // [T, V], rows gradient_stride apart: the logits themselves, a separate matrix, or null
  DType dtype;         // of both
  int64_t T, V, logits_stride, gradient_stride;
  const int64_t* targets;         // one per entry: 0 … V - 1, ignore_index, or with a given lse negative: not among V
  const int64_t* target_offsets;  // [T + 1] from 0, or null: entry t is the target of row t
  int64_t ignore_index;
  const float* weight;          // w, one per entry, or null: uniform_weight for all; ignored entries have 0 in any case
  float uniform_weight;         // of every entry when weight is null
  const float* entropy_weight;  // h [T], or null: zeros
};

struct LossOptions {
  double label_smoothing = 0.0, z_loss = 0.0;
  double softcap = 0.0;  // cap(z) = softcap tanh(z / softcap), the identity when 0
  double scale = 1.0;    // 1 / temperature
  int64_t classes = 0;   // that share label_smoothing in the gradient; 0: V
};

// What is left beside the gradient; null: not wanted. Rows without a valid target have zeros and argmax -1.
struct RowResults {
  float* nll;       // one per entry
  float* weighted;  // w_e l_e, one per entry
  float* entropy;   // H [T]
  int64_t* argmax;  // [T], the lower of equals
  double* lse;      // [T]
};

// Returns L, in float64. A row whose weights are all 0 is not read (its gradient is 0) unless results are wanted.
// Targets must have been checked. given_lse: [T], in place of the rows' own, of which V may be a part, or null; then
// without entropy, and with label smoothing only the gradient is right.
// The same bits for every number of threads. Memory: 8 bytes per row, 4 V bytes per thread. Throws Interrupted, OutOfMemory.
double cross_entropy_rows(const LogitRows& rows, const LossOptions& options, const RowResults& results,
                          const double* given_lse, int threads);

// Of one row, with m the largest u.
struct RowStatistics {
  double largest;   // m
  double sum;       // sum_v exp(u_v - m)
  double weighted;  // sum_v exp(u_v - m) (u_v - m), when asked for
  double plain;     // sum_v (u_v - m), when asked for
};

// One logit and its u, in the very operations of RowStatistics.
struct Logit {
  float z, u;
};

// Between the two passes over a row: exp(u_v - shifts[v / BLOCK_COLUMNS]) of whole registers, or null. A shift of
// -infinity: nothing but zeros.
// e may be the float32 row of the gradient itself.
constexpr int64_t BLOCK_COLUMNS = 2048;  // 8 KiB of float32: this block and the next fit the innermost cache
struct Exponentials {
  float *e, *shifts;
};

// u = out * tanh(in * z), or out * z when in is 0.
struct Transform {
  float in, out;
};

// dL/du_v = exp(u_v - m) (factor + slope (u_v - m)) - constant.
struct GradientRule {
  float largest, factor, slope, constant;
};

}  // namespace mrt
