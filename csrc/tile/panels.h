// Packed matrices: rows as panels of 16, made by all threads in one read of the input.
#pragma once

#include "common/memory.h"
#include "tile/features.h"

namespace mrt {

// Panels first … last - 1 of a packed matrix.
struct Panels {
  const Unit* units;
  int64_t first, last;
};

// Rows as integers of a lattice, or (radius 0) as float32.
struct Packing {
  Lattice lattice;
  Scaling scaling;
};

class PackedRows {
 public:
  PackedRows(const Features& x, int64_t rows, const Packing& packing, int threads);
  // A unit is two integers or one float32.
  static int64_t units_per_row(const Packing& packing, int64_t D) {
    return packing.lattice.radius > 0 ? (D + 1) / 2 : D;
  }
  static int64_t bytes(const Packing& packing, int64_t rows, int64_t D) {
    return num_panels(rows) * PANEL * units_per_row(packing, D) * static_cast<int64_t>(sizeof(Unit));
  }
  int64_t bad_row() const { return bad_row_; }  // the first that holds NaN or infinity, or -1
  int64_t U() const { return U_; }
  Panels panels(int64_t first, int64_t last) const {
    return {reinterpret_cast<const Unit*>(buffer_.data()), first, last};
  }

 private:
  int64_t U_, bad_row_;
  Buffer buffer_;
};

}  // namespace mrt
