// Rows of features on the lattice of mrtkern/lattice.py, on a GPU: q = rint(x * (radius / |x|)), eight int16 a vector.
//
// Idea    LANES / WIDTH threads share a row and read 16 of its components at a time, 16 bytes each where it is aligned:
//         every thread owns WIDTH of the norm's 16 interleaved sums. The second reading comes from the cache.
// Sums    float64, in the order of the reference; every rounding is written out.
#pragma once

#include "common/team.cuh"
#include "tile/features.h"

namespace mrt {

constexpr int NORM_LANES = 16;          // interleaved sums of a squared norm
constexpr int VECTOR_BYTES = 16;        // the widest load
constexpr int COMPONENTS = 8;           // int16 per vector
constexpr int AHEAD = 4;                // loads of a thread before it uses the first: a warp has 2 KiB in flight
constexpr double NO_SQUARE = 0x1p320;   // sums of squares of finite float32 stay below
constexpr double EVEN_BEYOND = 2048.0;  // larger components are even, so that float16 holds them

// Rows of `count` vectors, `stride` vectors apart, zero beyond the last feature.
struct LatticeRows {
  uint4* vectors;
  int64_t stride;
  int count;
  __device__ const uint4* row(int i) const { return vectors + i * stride; }
};

__device__ inline float widen(float value) {
  return value;
}
__device__ inline float widen(__half value) {
  return __half2float(value);
}
__device__ inline float widen(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

// The low or high half of a word.
template <class T>
__device__ float half_of(unsigned word, bool is_high);
template <>
__device__ inline float half_of<__half>(unsigned word, bool is_high) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(is_high ? word >> 16 : word & 0xffff)));
}
template <>
__device__ inline float half_of<__nv_bfloat16>(unsigned word, bool is_high) {
  return __uint_as_float(is_high ? word & 0xffff0000U : word << 16);
}

// WIDTH consecutive components: one, or a whole vector of 16 bytes.
template <class T, int WIDTH>
struct Reader {
  static_assert(WIDTH * sizeof(T) == VECTOR_BYTES);
  static __device__ void read(const T* row, int64_t d, int64_t, float (&out)[WIDTH]) {
    const uint4 words = *reinterpret_cast<const uint4*>(row + d);
    const unsigned word[4] = {words.x, words.y, words.z, words.w};
    for (int c = 0; c < WIDTH; ++c) {
      if constexpr (sizeof(T) == sizeof(float)) {
        out[c] = __uint_as_float(word[c]);
      } else {
        out[c] = half_of<T>(word[c / 2], c % 2 == 1);
      }
    }
  }
};
template <class T>
struct Reader<T, 1> {
  static __device__ void read(const T* row, int64_t d, int64_t step, float (&out)[1]) { out[0] = widen(row[d * step]); }
};

__device__ inline int to_lattice(float x, double scale) {
  const double v = __dmul_rn(static_cast<double>(x), scale);
  return fabs(v) > EVEN_BEYOND ? 2 * __double2int_rn(v * 0.5) : __double2int_rn(v);
}

__device__ inline unsigned pack(int low, int high) {
  return (static_cast<unsigned>(low) & 0xffff) | static_cast<unsigned>(high) << 16;
}

// Components of AHEAD steps from `first` on, zeros beyond the last: all loads before the first use.
template <class T, int WIDTH>
__device__ void read_ahead(const T* row, int64_t first, int64_t D, int64_t step, float (&x)[AHEAD][WIDTH]) {
#pragma unroll
  for (int n = 0; n < AHEAD; ++n) {
    const int64_t d = first + n * NORM_LANES;
    for (float& component : x[n]) component = 0.0F;
    if (d < D) Reader<T, WIDTH>::read(row, d, step, x[n]);
  }
}

// |row|^2, for every thread of the row; `part` says which of its components this thread owns.
template <class T, int WIDTH>
__device__ double squared_norm(const T* row, int64_t D, int64_t step, int part) {
  double sums[WIDTH] = {};
#pragma unroll 1
  for (int64_t first = part * WIDTH; first < D; first += AHEAD * NORM_LANES) {
    float x[AHEAD][WIDTH];
    read_ahead(row, first, D, step, x);
#pragma unroll
    for (int n = 0; n < AHEAD; ++n) {  // a float32's square is exact: fusing it changes nothing, nor does a zero's
      for (int c = 0; c < WIDTH; ++c) {
        const double wide = static_cast<double>(x[n][c]);
        sums[c] = __fma_rn(wide, wide, sums[c]);
      }
    }
  }
  for (int distance = NORM_LANES / WIDTH / 2; distance > 0; distance /= 2) {
    for (double& sum : sums) sum = __dadd_rn(sum, __shfl_xor_sync(WHOLE_WARP, sum, distance));
  }
  for (int half = WIDTH / 2; half > 0; half /= 2) {
    for (int c = 0; c < half; ++c) sums[c] = __dadd_rn(sums[c], sums[c + half]);
  }
  return sums[0];
}

// Components scaled and rounded, to where they belong.
template <int WIDTH>
__device__ void store_components(const float (&x)[WIDTH], double scale, int16_t* to) {
  if constexpr (WIDTH == 1) {
    *to = static_cast<int16_t>(to_lattice(x[0], scale));
  } else {
    unsigned word[WIDTH / 2];
    for (int c = 0; c < WIDTH; c += 2) word[c / 2] = pack(to_lattice(x[c], scale), to_lattice(x[c + 1], scale));
    if constexpr (WIDTH == 4) *reinterpret_cast<uint2*>(to) = make_uint2(word[0], word[1]);
    if constexpr (WIDTH == 8) *reinterpret_cast<uint4*>(to) = make_uint4(word[0], word[1], word[2], word[3]);
  }
}

// One row, scaled and rounded, in the words that its threads own.
template <class T, int WIDTH>
__device__ void store_row(const T* row, int64_t D, int64_t step, int part, double scale, uint4* out, int count) {
  const int64_t padded = static_cast<int64_t>(count) * COMPONENTS;
#pragma unroll 1
  for (int64_t first = part * WIDTH; first < padded; first += AHEAD * NORM_LANES) {
    float x[AHEAD][WIDTH];
    read_ahead(row, first, D, step, x);
#pragma unroll
    for (int n = 0; n < AHEAD; ++n) {
      const int64_t d = first + n * NORM_LANES;
      if (d < padded) store_components(x[n], scale, reinterpret_cast<int16_t*>(out) + d);
    }
  }
}

// Rows first … first + N - 1 of x. Returns whether this thread met one with NaN or infinity; *bad_row becomes the lowest.
template <class T, int WIDTH, class Team>
__device__ bool quantise_as(const Team& team, const Features& x, int64_t first, int N, double radius,
                            const LatticeRows& rows, unsigned long long* bad_row) {
  constexpr int THREADS = NORM_LANES / WIDTH;
  const int part = team.rank() % THREADS;
  bool is_bad = false;
  for (int begin = 0; begin < N; begin += team.size() / THREADS) {
    const int i = begin + team.rank() / THREADS;
    const T* const row = static_cast<const T*>(x.data) + (first + min(i, N - 1)) * x.row_stride;
    const double square = squared_norm<T, WIDTH>(row, x.columns, x.column_stride, part);
    if (i >= N) continue;
    if (!(square < NO_SQUARE)) {
      is_bad = true;
      atomicMin(bad_row, static_cast<unsigned long long>(first + i));
      continue;
    }
    const double scale = square > 0.0 ? __ddiv_rn(radius, __dsqrt_rn(square)) : 0.0;
    store_row<T, WIDTH>(row, x.columns, x.column_stride, part, scale, rows.vectors + i * rows.stride, rows.count);
  }
  return is_bad;
}

template <class T, class Team>
__device__ bool quantise_aligned(const Team& team, const Features& x, int64_t first, int N, double radius,
                                 const LatticeRows& rows, unsigned long long* bad_row) {
  constexpr int WIDTH = VECTOR_BYTES / sizeof(T);
  const bool is_aligned = x.column_stride == 1 && x.columns % WIDTH == 0 && x.row_stride % WIDTH == 0 &&
                          reinterpret_cast<uintptr_t>(x.data) % VECTOR_BYTES == 0;
  if (is_aligned) return quantise_as<T, WIDTH>(team, x, first, N, radius, rows, bad_row);
  return quantise_as<T, 1>(team, x, first, N, radius, rows, bad_row);
}

template <class Team>
__device__ bool quantise(const Team& team, const Features& x, int64_t first, int N, double radius,
                         const LatticeRows& rows, unsigned long long* bad_row) {
  if (x.dtype == DType::float32) return quantise_aligned<float>(team, x, first, N, radius, rows, bad_row);
  if (x.dtype == DType::float16) return quantise_aligned<__half>(team, x, first, N, radius, rows, bad_row);
  return quantise_aligned<__nv_bfloat16>(team, x, first, N, radius, rows, bad_row);
}

// The high and the low bytes of eight components, four to a register: q = 256 high + low, high signed, low not.
struct Bytes {
  unsigned high[2], low[2];
};

__device__ inline Bytes bytes_of(const uint4& v) {
  return {{__byte_perm(v.x, v.y, 0x7531), __byte_perm(v.z, v.w, 0x7531)},
          {__byte_perm(v.x, v.y, 0x6420), __byte_perm(v.z, v.w, 0x6420)}};
}

// Products of 16 lattice rows with 16 others, which a warp makes on integer matrix units: exact, whatever the order.
//
//   q · p = 65536 high · high + 256 (high · low + low · high) + low · low
//
// A thread holds eight of them, at row(e), column(e). Sums wrap around; the result is below 2^24.
class MatrixTile {
 public:
  static constexpr int ROWS = 16, COUNT = 8;

  __device__ explicit MatrixTile(int lane) : lane_(lane) {}

  // Adds the rows left … left + 15 times the rows right … right + 15, of `last` + 1 rows; those beyond are not used.
  __device__ void add(const LatticeRows& rows, int left, int right, int last) {
    const int of_lane = lane_ / 4, first = lane_ % 4;
    const uint4* from[4];
    for (int s = 0; s < 4; ++s) from[s] = rows.row(min((s < 2 ? left : right) + s % 2 * 8 + of_lane, last));
#pragma unroll 2
    for (int v = first; v < rows.count + first; v += 4) {  // the same number of steps for all threads
      uint4 read[4];
      for (int s = 0; s < 4; ++s) read[s] = v < rows.count ? from[s][v] : make_uint4(0, 0, 0, 0);
      step(bytes_of(read[0]), bytes_of(read[1]), bytes_of(read[2]), 0);
      step(bytes_of(read[0]), bytes_of(read[1]), bytes_of(read[3]), 4);
    }
  }

  __device__ int row(int e) const { return lane_ / 4 + e / 2 % 2 * 8; }
  __device__ int column(int e) const { return lane_ % 4 * 2 + e % 2 + e / 4 * 8; }
  __device__ int product(int e) const {
    const auto high = static_cast<unsigned>(high_[e / 4][e % 4]), middle = static_cast<unsigned>(middle_[e / 4][e % 4]);
    return static_cast<int>((high << 16) + (middle << 8) + static_cast<unsigned>(low_[e / 4][e % 4]));
  }

 private:
  // 32 features of two times eight rows and of eight columns.
  __device__ void step(const Bytes& above, const Bytes& below, const Bytes& columns, int begin) {
    const unsigned high[4] = {above.high[0], below.high[0], above.high[1], below.high[1]};
    const unsigned low[4] = {above.low[0], below.low[0], above.low[1], below.low[1]};
    const int half = begin / 4;
    multiply_bytes<int8_t, int8_t>(high_[half], high, columns.high);
    multiply_bytes<int8_t, uint8_t>(middle_[half], high, columns.low);
    multiply_bytes<uint8_t, int8_t>(middle_[half], low, columns.high);
    multiply_bytes<uint8_t, uint8_t>(low_[half], low, columns.low);
  }

  const int lane_;
  int high_[2][4] = {}, middle_[2][4] = {}, low_[2][4] = {};
};

}  // namespace mrt
