// Similarity of all pairs of rows in every group, and the gradient of the rows.
#pragma once

#include <cstdint>

#include "tile/features.h"

namespace mrt {

// The rows of every group: packed, one group after the other, or a batch of matrices of equal shape.
struct Matrices {
  Features first;          // of the first matrix
  int64_t batch_stride;    // from one matrix to the next, in elements
  int64_t rows_per_group;  // in a batch
};

struct SimilarityProblem {
  int64_t B;
  const int64_t* offsets;  // [B + 1] packed: group b owns rows offsets[b] … offsets[b + 1] - 1; a batch: null
  Matrices x, y;           // y is x where the rows of a group meet themselves
  bool is_self;
  Metric metric;
  float gamma;
};

// The first row of each matrix, counted through the groups, that holds NaN or infinity, or -1.
struct BadFeatures {
  int64_t x, y;
};

// s: group after group, each M x N and row-major, in the type of x. Throws Interrupted, OutOfMemory.
BadFeatures similarity(const SimilarityProblem& problem, void* s, int threads);

// dx [rows of x, D], dy [rows of y, D] in the type of x, either may be null; grad has the layout and the type of s. Where
// rows meet themselves dx takes both sides. Throws Interrupted, OutOfMemory.
void similarity_gradient(const SimilarityProblem& problem, const void* grad, void* dx, void* dy, int threads);

// Where scores of one group go.
struct ScoreMatrix {
  void* s;
  DType dtype;
  int64_t M, N;
  Metric metric;
  float gamma;
  bool is_mirrored;  // rows with themselves: each tile above the diagonal stands for its mirror image too
  bool is_streamed;  // past the caches: rows of s start on cache lines, and s is larger than any cache
};

// One step of a gradient: `rows` rows from row0 receive what `count` others from other0 pass to them.
struct Pull {
  Metric metric;
  float gamma;
  int64_t D, row0, rows, other0, count;
  // The gradient of the scores. Row r and other n meet in grad[r * stride + n] where by_row, in grad[n * stride + r]
  // where by_column, in the sum of the two where both.
  const void* grad;
  DType dtype;
  int64_t stride;
  bool by_row, by_column;
  const Unit *row_panels, *other_panels;  // of all rows and all others, for metrics whose slope depends on the score
  const float* features;                  // the others as panels of 16 features: [ceil(D / 16)][count][16]
  float *slopes, *pulled;                 // [ceil(rows / 16)][count][16], [ceil(D / 16)][rows][16]
  double* sums;                           // [rows] of the slopes, for rbf
};

constexpr int64_t DIRECT_ROWS = 32;      // groups of up to this many rows …
constexpr int64_t DIRECT_FEATURES = 64;  // … of at least this many features are multiplied without packing

}  // namespace mrt
