// Where one team keeps a group while it is worked on: in shared memory, or in device memory where that is too small.
#pragma once

#include <cstddef>

#include "facility_location/facility_location.h"
#include "tile/lattice.cuh"

namespace mrt {

enum class Place { on_chip, rows_outside, outside };  // all on the chip; all but the rows; nothing

constexpr int PAIRS = 8;  // uint16 per vector of 16 bytes
constexpr int TILE = MatrixTile::ROWS;

// Rows an odd number of vectors apart: eight threads that read the same vector of eight rows meet eight different banks.
__host__ __device__ constexpr int64_t odd_vectors(int64_t count) {
  return count % 2 == 0 ? count + 1 : count;
}

__host__ __device__ constexpr int ceil_div(int64_t count, int64_t size) {
  return static_cast<int>((count + size - 1) / size);
}

// Pairs from one candidate to the next. Places in the table of the largest group fit an int.
__host__ __device__ constexpr int pair_stride(int N) {
  return static_cast<int>(odd_vectors(ceil_div(N, PAIRS))) * PAIRS;
}
static_assert(LARGEST_GROUP * pair_stride(LARGEST_GROUP) <= INT32_MAX);

// Tiles on and above the diagonal: the products are symmetric.
__host__ __device__ constexpr int num_tiles(int N) {
  const int side = ceil_div(N, TILE);
  return side * (side + 1) / 2;
}

// Carves arrays out of memory; their sizes are multiples of 16 bytes. Without memory it only counts.
class Carver {
 public:
  __host__ __device__ explicit Carver(unsigned char* base) : base_(base) {}
  template <class T>
  __host__ __device__ T* take(int64_t count) {
    T* const array = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += count * static_cast<int64_t>(sizeof(T));
    return array;
  }
  __host__ __device__ int64_t used() const { return used_; }

 private:
  unsigned char* base_;
  int64_t used_ = 0;
};

struct Arrays {
  LatticeRows rows;
  uint16_t* pairs;  // [N, stride]: candidate j covers row i by pairs[j * stride + i]
  uint16_t* best;   // [N, in whole vectors]
  float *unit, *quality;
  int64_t *bonus, *bounds, *keys;
  int *order, *picks, *owned;
  unsigned char* is_open;
};

// Arrays of a team for groups of up to `largest` rows of D features.
template <Place PLACE>
__host__ __device__ Arrays carve(Carver& chip, Carver& outside, int largest, int64_t D) {
  Carver& memory = PLACE == Place::outside ? outside : chip;
  const int N = ceil_div(largest, VECTOR_BYTES) * VECTOR_BYTES;  // so that even an array of bytes fills vectors
  Arrays a;
  a.rows.count = ceil_div(D, COMPONENTS);
  a.rows.stride = odd_vectors(a.rows.count);
  a.unit = memory.take<float>(N);
  a.quality = memory.take<float>(N);
  a.bonus = memory.take<int64_t>(N);
  a.bounds = memory.take<int64_t>(N);
  a.keys = memory.take<int64_t>(N);
  a.order = memory.take<int>(N);
  a.picks = memory.take<int>(N);
  a.owned = memory.take<int>(N);
  a.best = memory.take<uint16_t>(N);
  a.is_open = memory.take<unsigned char>(N);
  a.pairs = memory.take<uint16_t>(largest * pair_stride(largest));
  a.rows.vectors = (PLACE == Place::on_chip ? chip : outside).take<uint4>(largest * a.rows.stride);
  return a;
}

}  // namespace mrt
