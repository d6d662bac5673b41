// Threads that work on one problem together: a warp, or a whole block of several.
//
// A team has: rank() and size(), a multiple of 32; sync(); and questions that every thread asks and whose answer every
// thread gets. Each of them orders memory as sync() does.
#pragma once

#include <cstdint>

#include "common/cuda_language.h"

namespace mrt {

constexpr int WARP_SIZE = 32;
constexpr unsigned WHOLE_WARP = 0xffffffff;

// The first of the largest values. Packed into one word, gains with a bonus and row numbers would need 66 bits.
struct Leader {
  int64_t value;
  int id;
};

class WarpTeam {
 public:
  static constexpr int MOST_THREADS = 4 * WARP_SIZE;  // four of them
  __device__ int rank() const { return static_cast<int>(threadIdx.x) % WARP_SIZE; }
  __device__ int size() const { return WARP_SIZE; }
  __device__ void sync() const { __syncwarp(); }

  __device__ bool any(bool holds) const {
    const bool answer = __any_sync(WHOLE_WARP, holds ? 1 : 0) != 0;
    sync();
    return answer;
  }

  __device__ int64_t sum(int64_t value) const {
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2) {
      value += __shfl_xor_sync(WHOLE_WARP, value, distance);
    }
    sync();
    return value;
  }

  __device__ float largest(float value) const {  // of values that are not negative: their bits have the same order
    const unsigned most = __reduce_max_sync(WHOLE_WARP, __float_as_uint(value));
    sync();
    return __uint_as_float(most);
  }

  // Values are not negative. Three reductions of 32 bits, each one instruction since sm_80.
  __device__ Leader leader(int64_t value, int id) const {
    const unsigned high = static_cast<unsigned>(value >> 32), low = static_cast<unsigned>(value);
    const unsigned most_high = __reduce_max_sync(WHOLE_WARP, high);
    const unsigned most_low = __reduce_max_sync(WHOLE_WARP, high == most_high ? low : 0U);
    const bool leads = high == most_high && low == most_low;
    const unsigned first = __reduce_min_sync(WHOLE_WARP, leads ? static_cast<unsigned>(id) : 0xffffffffU);
    sync();
    return {static_cast<int64_t>(most_high) << 32 | most_low, static_cast<int>(first)};
  }
};

class BlockTeam {
 public:
  static constexpr int MOST_THREADS = 256;
  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return static_cast<int>(blockDim.x); }
  __device__ void sync() const { __syncthreads(); }
  __device__ bool any(bool holds) const { return __syncthreads_or(holds ? 1 : 0) != 0; }

  __device__ int64_t sum(int64_t value) const {
    MRT_SHARED(int64_t, partial, WARP_SIZE);
    share(partial, warp_.sum(value));
    const int64_t total = warp_.sum(has_partial() ? partial[warp_.rank()] : 0);
    sync();
    return total;
  }

  __device__ float largest(float value) const {
    MRT_SHARED(float, partial, WARP_SIZE);
    share(partial, warp_.largest(value));
    const float most = warp_.largest(has_partial() ? partial[warp_.rank()] : 0.0F);
    sync();
    return most;
  }

  __device__ Leader leader(int64_t value, int id) const {
    MRT_SHARED(Leader, partial, WARP_SIZE);
    share(partial, warp_.leader(value, id));
    const Leader mine = has_partial() ? partial[warp_.rank()] : Leader{0, INT32_MAX};
    const Leader first = warp_.leader(mine.value, mine.id);
    sync();
    return first;
  }

 private:
  __device__ bool has_partial() const { return warp_.rank() < size() / WARP_SIZE; }

  // The first thread of each warp leaves its warp's answer.
  template <class T>
  __device__ void share(T* partial, T value) const {
    if (warp_.rank() == 0) partial[rank() / WARP_SIZE] = value;
    sync();
  }

  WarpTeam warp_;
};

}  // namespace mrt
