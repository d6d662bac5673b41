// Rows of features as the caller holds them: an address, a type, two strides.
#pragma once

#include <cstdint>

#define MRT_INLINE inline __attribute__((always_inline))

namespace mrt {

enum class DType { float32, bfloat16, float16, float64 };
enum class Metric { cosine, dot, shifted_cosine, clamped_cosine, rbf };

struct Features {
  const void* data;
  DType dtype;
  int64_t row_stride, column_stride;  // in elements
  int64_t columns;                    // D
};

// A panel holds 16 rows, interleaved: for every unit u, the u-th unit of each row. A unit is four bytes:
// one float32 or two int16.
constexpr int PANEL = 16;
typedef uint32_t Unit __attribute__((may_alias));

// How rows become integers: scaled to `radius` by their own length, or all of them by `length` where it is not zero.
// Only the coarse lattice of mrtkern/lattice.py has even components beyond 2048.
struct Lattice {
  double radius = 0.0;
  bool is_coarse = true;
  double length = 0.0;
};

// How rows become float32: as they are, or divided by their own length, or all of them by `length` where it is not zero.
struct Scaling {
  bool normalise = false;
  double length = 0.0;
};

constexpr int64_t element_size(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
constexpr int64_t num_panels(int64_t rows) {
  return (rows + PANEL - 1) / PANEL;
}

}  // namespace mrt
