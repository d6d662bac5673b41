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
  double gamma;  // of rbf
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

// Which rows of y a row of x is compared with: the members of the cells that it probes.
struct Cells {
  int64_t count;
  const int64_t* cell;    // [N] of every row of y
  int64_t num_probes;     // P
  const int64_t* probes;  // [M, P] cells of every row of x, all different, the nearest first
};

// The same search among fewer pairs. Throws Interrupted, OutOfMemory. Rows must be finite.
void neighbors_in_cells(const NeighborsProblem& problem, const Cells& cells, const NeighborsResult& result,
                        int threads);

// labels[i] = the lowest row of the component of row i in the graph of pairs with cosine >= threshold (float64).
// Returns the first bad row or -1.
int64_t components(const Features& x, int64_t N, double threshold, double radius, int64_t* labels, int threads);
// The same of groups, between offsets [num_groups + 1], each by itself.
int64_t components_of_groups(const Features& x, const int64_t* offsets, int64_t num_groups, double threshold,
                             double radius, int64_t* labels, int threads);

// Candidates of some rows while tiles are scanned: list r has the slots r * capacity … of scores and ids, and belongs to
// row first + r, or to rows[r].
// Scores below its threshold cannot be among its k largest. `full` must make room once fewer than PANEL slots are left.
template <class Score>
struct Lists {
  int64_t first, last, capacity;  // rows first … last - 1
  const int32_t* rows;            // or null
  Score* threshold;  // [rows, padded to panels] the largest value for padding and for rows that take nothing
  int32_t* count;    // [rows]
  Score* scores;     // [rows, capacity]
  int32_t* ids;      // [rows, capacity]
  void (*full)(void* context, Lists& lists, int64_t r);
  void* context;

  MRT_INLINE int64_t row(int64_t r) const { return rows == nullptr ? first + r : rows[r]; }
};

// What to do with a pair of rows i < j.
using PairFound = void (*)(void* context, int64_t i, int64_t j, int32_t product);

// Who may not be whose neighbour.
struct Exclusion {
  bool self;
  const int64_t *group_x, *group_y;
  bool any() const { return self || group_x != nullptr; }
};

// Picked rows and the members of one cell.
struct Meeting {
  const int32_t* slots;    // [picked rows, padded] the list of each; padding has one whose threshold nothing reaches
  const int32_t* members;  // [places of y] the row of y that lies there
  int64_t end;             // places from here on are padding
};

}  // namespace mrt
