// The k nearest rows of every row: the contract between the binding, the schedules and the kernels.
// Definitions: mrtkern/ops/neighbors/__init__.py and reference.py.
#pragma once

#include <cstdint>

#include "tile/features.h"

namespace mrt {

// What decides: the float64 score (exact), the integer product on the lattice, or the float32 product.
enum class Precision { exact, int16, float32 };

struct NeighborsProblem {
  Features x, y;  // y is x when is_self
  int64_t M, N;   // rows of x and of y; N < 2^31
  bool is_self;
  int64_t k;
  Metric metric;
  Precision precision;
  double radius;                     // of the lattice: |q| of a row stays below 2^15
  bool exclude_self;                 // only when is_self
  const int64_t *group_x, *group_y;  // [M], [N] rows of equal groups are no neighbours; or null
};

struct NeighborsResult {
  int64_t* ids;   // [M, k] by score, largest first, then by index; -1 where there is nothing left
  float* scores;  // [M, k], -infinity there
};

// The first row that holds NaN or infinity, in x and in y, or -1.
struct BadRows {
  int64_t x, y;
};

// Throws Interrupted, OutOfMemory. Peak memory: memory_of_neighbors.
BadRows neighbors(const NeighborsProblem& problem, const NeighborsResult& result, int threads);

// labels[i] = the lowest row of the component of row i in the graph of pairs with cosine >= threshold (float64).
// Returns the first bad row or -1.
int64_t components(const Features& x, int64_t N, double threshold, double radius, int64_t* labels, int threads);

// Candidates of consecutive rows while tiles are scanned: row first + r has the slots r * capacity … of scores and ids.
// Scores below its threshold cannot be among its k largest. `full` must make room once fewer than PANEL slots are left.
template <class Score>
struct Lists {
  int64_t first, last, capacity;  // rows first … last - 1
  Score* threshold;  // [rows, padded to panels] the largest value for padding and for rows that take nothing
  int32_t* count;    // [rows]
  Score* scores;     // [rows, capacity]
  int32_t* ids;      // [rows, capacity]
  void (*full)(void* context, Lists& lists, int64_t r);
  void* context;
};

// What to do with a pair of rows i < j.
using PairFound = void (*)(void* context, int64_t i, int64_t j, int32_t product);

// Who may not be whose neighbour.
struct Exclusion {
  bool self;
  const int64_t *group_x, *group_y;
  bool any() const { return self || group_x != nullptr; }
};

}  // namespace mrt
