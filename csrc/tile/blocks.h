// What the searches over all pairs of rows share: blocks of panels, squared lengths, and the error of an integer product.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tile/features.h"

namespace mrt {

constexpr int64_t LARGEST_BLOCK = 64;  // panels of rows that a thread takes at a time

// Panels per block of rows: what the second-level cache holds, and enough blocks for everyone.
int64_t block_panels(int64_t rows, int64_t U, int threads);

constexpr int64_t MOST_COLUMNS = 64;  // panels of columns between two looks at the clock: a few milliseconds

// The item-th pair of blocks row <= column, by columns.
struct BlockPair {
  int64_t row, column;
};
BlockPair block_pair(int64_t item);

// |x|^2 of every row, float64.
std::vector<double> row_squares(const Features& x, int64_t rows, int threads);

// The cosine of two rows from their product and their squares. Exactly 1 for equal rows: sqrt(s * s) is s.
inline double cosine_of(double dot, double square_x, double square_y) {
  const double product = square_x * square_y;
  return product > 0 ? std::clamp(dot / std::sqrt(product), -1.0, 1.0) : 0.0;
}

// How far a product of two lattice rows can be from the product of the rows of length `radius` that they stand for:
// each was moved by at most sqrt(D) / 2. Two more for the rounding of thresholds.
inline double product_error(double radius, int64_t D) {
  return std::ceil(radius * std::sqrt(static_cast<double>(D)) + static_cast<double>(D) / 4 + 2);
}

}  // namespace mrt
