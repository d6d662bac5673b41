// Packed matrices: rows as panels of 16, made by all threads in one read of the input.
#pragma once

#include <vector>

#include "common/memory.h"
#include "tile/features.h"

namespace mrt {

// Panels first … last - 1 of a packed matrix.
struct Panels {
  const Unit* units;
  int64_t first, last;
};

// Two more integers for each lattice row, so that a product of x and y becomes <x, y> - rint(scale |y|^2): the order of
// products is that of distances. With h = rint(…) < 2^29 those of y are h / 2^14 and the rest, those of x -2^14 and -1.
struct Tail {
  enum class Side { none, x, y } side = Side::none;
  const double* squares = nullptr;  // |y|^2 of every row
  double scale = 0.0;
};

// Rows as integers of a lattice, or (radius 0) as float32.
struct Packing {
  Lattice lattice;
  Scaling scaling;
  Tail tail{};

  // A unit is two integers or one float32.
  int64_t units(int64_t D) const { return lattice.radius > 0 ? (D + 1) / 2 + has_tail() : D; }
  bool has_tail() const { return tail.side != Tail::Side::none; }
};

// Packs some rows at a time. Every thread has its own.
class RowPacker {
 public:
  RowPacker(const Features& x, const Packing& packing);
  // Rows first … first + count - 1, or rows[0 … count - 1] wherever they lie, of which negative ones are zeros.
  // Returns the first row that holds NaN or infinity, or -1.
  int64_t pack(int64_t first, int64_t count, Unit* out);
  int64_t pack(const int32_t* rows, int64_t count, Unit* out);

 private:
  int64_t run(const Features& x, int64_t first, int64_t count, Unit* out);
  void gather(const int32_t* rows, int64_t count);
  void add_tail(int64_t lane, int64_t row, Unit* panel) const;

  Features x_;
  Packing packing_;
  int64_t U_;
  Buffer buffer_, gathered_;  // the second only where rows are gathered
  float* converted_;
  Unit* staged_;
};

class PackedRows {
 public:
  PackedRows(const Features& x, int64_t rows, const Packing& packing, int threads);
  // Row order[i] of x at place i; negative: zeros.
  PackedRows(const Features& x, const std::vector<int32_t>& order, const Packing& packing, int threads);
  static int64_t bytes(const Packing& packing, int64_t rows, int64_t D) {
    return num_panels(rows) * PANEL * packing.units(D) * static_cast<int64_t>(sizeof(Unit));
  }
  int64_t bad_row() const { return bad_row_; }  // the first that holds NaN or infinity, or -1
  int64_t U() const { return U_; }
  Panels panels(int64_t first, int64_t last) const {
    return {reinterpret_cast<const Unit*>(buffer_.data()), first, last};
  }

 private:
  template <class Pack>
  void fill(const Features& x, int64_t rows, const Packing& packing, int threads, const Pack& pack);

  int64_t U_, bad_row_;
  Buffer buffer_;
};

}  // namespace mrt
