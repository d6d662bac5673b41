// The registers of one instruction set: what the tile loop and the epilogues need and nothing more.
//
// Included by csrc/isa/<name>.cpp, which defines exactly one of MRT_AVX512, MRT_AVX2, MRT_PORTABLE. Everything here and
// in every header that builds on it has internal linkage: an inline function with external linkage, compiled for
// AVX-512 and merged by the linker with its twin, would crash a machine without it.
#pragma once

#include <cstdint>
#include <cstring>

#include "tile/features.h"

#if !defined(MRT_PORTABLE)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12's own headers: bug 105593, gone in gcc 13
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace mrt {
namespace {

// Pairs: a unit is two int16, a product adds both products to an int32. Floats: a unit is a float32, fused
// multiply-add. multiply_add: sum += one unit, broadcast, times every unit of b. WIDTH units fill a register. PANELS
// panels of columns are multiplied at a time by ROWS rows: 16 sums on AVX-512, 8 elsewhere, stay in registers, more
// than the latency of an addition times its rate, and a loaded unit serves PANELS products or more.

#if defined(MRT_AVX512)

struct Pairs {
  using Register = __m512i;
  using Sum = int32_t;
  using Feature = int16_t;
  static constexpr int WIDTH = 16, ROWS = 8, PANELS = 2;
  static MRT_INLINE Register zero() { return _mm512_setzero_si512(); }
  static MRT_INLINE Register load(const Unit* p) { return _mm512_load_si512(p); }
  static MRT_INLINE Register broadcast(const Unit* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  // Inline, because gcc 12 makes two instructions of the intrinsic: it copies the sum.
  static MRT_INLINE void multiply_add(Register a, Register b, Register& sum) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
  }
  static MRT_INLINE void store(Sum* p, Register v) { _mm512_store_si512(p, v); }
  static MRT_INLINE Register restore(const Sum* p) { return _mm512_load_si512(p); }
};

struct Floats {
  using Register = __m512;
  using Sum = float;
  using Feature = float;
  static constexpr int WIDTH = 16, ROWS = 8, PANELS = 2;
  static MRT_INLINE Register zero() { return _mm512_setzero_ps(); }
  static MRT_INLINE Register load(const Unit* p) { return _mm512_castsi512_ps(_mm512_load_si512(p)); }
  static MRT_INLINE Register broadcast(const Unit* p) { return _mm512_castsi512_ps(Pairs::broadcast(p)); }
  static MRT_INLINE void multiply_add(Register a, Register b, Register& sum) { sum = _mm512_fmadd_ps(a, b, sum); }
  static MRT_INLINE void store(Sum* p, Register v) { _mm512_store_ps(p, v); }
  static MRT_INLINE Register restore(const Sum* p) { return _mm512_load_ps(p); }
};

// Sixteen interleaved float64 sums of squares. A float32's square is exact in float64, so fusing it with
// the addition changes nothing.
struct Squares {
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  MRT_INLINE void add(const float* x) {
    const __m512d a = _mm512_cvtps_pd(_mm256_loadu_ps(x)), b = _mm512_cvtps_pd(_mm256_loadu_ps(x + 8));
    low = _mm512_fmadd_pd(a, a, low);
    high = _mm512_fmadd_pd(b, b, high);
  }
  // Lanes by halves: 8, 4, 2, 1.
  MRT_INLINE double total() const {
    const __m512d eight = _mm512_add_pd(low, high);
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
};

MRT_INLINE __m512d load_wide(const float* x) {
  return _mm512_cvtps_pd(_mm256_loadu_ps(x));
}
MRT_INLINE __m512d load_wide(const double* x) {
  return _mm512_loadu_pd(x);
}

// Sixteen interleaved float64 sums of products, each rounded before it is added.
struct Products {
  Squares sums;
  template <class T>
  MRT_INLINE void add(const double* x, const T* y) {
    sums.low = _mm512_add_pd(sums.low, _mm512_mul_pd(load_wide(x), load_wide(y)));
    sums.high = _mm512_add_pd(sums.high, _mm512_mul_pd(load_wide(x + 8), load_wide(y + 8)));
  }
  MRT_INLINE double total() const { return sums.total(); }
};

// Sixteen interleaved float64 sums of squared differences; each difference and each square rounded.
struct SquaredDifferences {
  Squares sums;
  template <class T>
  MRT_INLINE void add(const double* x, const T* y) {
    const __m512d a = _mm512_sub_pd(load_wide(x), load_wide(y)), b = _mm512_sub_pd(load_wide(x + 8), load_wide(y + 8));
    sums.low = _mm512_add_pd(sums.low, _mm512_mul_pd(a, a));
    sums.high = _mm512_add_pd(sums.high, _mm512_mul_pd(b, b));
  }
  MRT_INLINE double total() const { return sums.total(); }
};

// q = rint(x * scale) for 16 features, half to even, in float64; remembers the largest |q|.
struct Rounder {
  __m512d scale;
  __m256i magnitudes = _mm256_setzero_si256();
  MRT_INLINE explicit Rounder(double s) : scale(_mm512_set1_pd(s)) {}
  // Eight integers in the low bits of eight float64: adding 1.5 * 2^52 rounds. A quarter faster
  // than converting and narrowing.
  MRT_INLINE __m512i low_bits(const float* x) const {
    const __m512d v = _mm512_mul_pd(_mm512_cvtps_pd(_mm256_loadu_ps(x)), scale);
    return _mm512_castpd_si512(_mm512_add_pd(v, _mm512_set1_pd(0x1.8p52)));
  }
  MRT_INLINE void round(const float* x, int16_t* q) {
    const __m512i words = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 60, 56, 52, 48, 44, 40, 36,
                                           32, 28, 24, 20, 16, 12, 8, 4, 0);
    const __m256i both = _mm512_castsi512_si256(_mm512_permutex2var_epi16(low_bits(x), words, low_bits(x + 8)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), both);
    magnitudes = _mm256_max_epi16(magnitudes, _mm256_abs_epi16(both));
  }
  MRT_INLINE bool exceeds(int16_t bound) const {
    return _mm256_movemask_epi8(_mm256_cmpgt_epi16(magnitudes, _mm256_set1_epi16(bound))) != 0;
  }
};

// Sum of max(t - best, 0) over count (a multiple of 32) unsigned 15-bit values.
MRT_INLINE int32_t excess(const uint16_t* t, const uint16_t* best, int64_t count) {
  const __m512i ones = _mm512_set1_epi16(1);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 32) {
    const __m512i more = _mm512_subs_epu16(_mm512_load_si512(t + i), _mm512_load_si512(best + i));
    sum = _mm512_dpwssd_epi32(sum, more, ones);
  }
  return _mm512_reduce_add_epi32(sum);
}

// out[c][r] = in[r][c] for 16 x 16 units; rows of `in` are `stride` units apart.
MRT_INLINE void transpose(const Unit* in, int64_t stride, Unit* out) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_si512(in + r * stride);
#pragma GCC unroll 8
  for (int r = 0; r < 16; r += 2) {
    b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 16; r += 4) {
    a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
    a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
    a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
    a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    b[c] = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
    b[4 + c] = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    b[8 + c] = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
    b[12 + c] = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    _mm512_store_si512(out + 16 * c, _mm512_shuffle_i32x4(b[c], b[8 + c], 0x88));
    _mm512_store_si512(out + 16 * (4 + c), _mm512_shuffle_i32x4(b[4 + c], b[12 + c], 0x88));
    _mm512_store_si512(out + 16 * (8 + c), _mm512_shuffle_i32x4(b[c], b[8 + c], 0xdd));
    _mm512_store_si512(out + 16 * (12 + c), _mm512_shuffle_i32x4(b[4 + c], b[12 + c], 0xdd));
  }
}

#elif defined(MRT_AVX2)

struct Pairs {
  using Register = __m256i;
  using Sum = int32_t;
  using Feature = int16_t;
  static constexpr int WIDTH = 8, ROWS = 4, PANELS = 1;
  static MRT_INLINE Register zero() { return _mm256_setzero_si256(); }
  static MRT_INLINE Register load(const Unit* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static MRT_INLINE Register broadcast(const Unit* p) { return _mm256_set1_epi32(static_cast<int>(*p)); }
  static MRT_INLINE void multiply_add(Register a, Register b, Register& sum) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }
  static MRT_INLINE void store(Sum* p, Register v) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), v); }
  static MRT_INLINE Register restore(const Sum* p) { return load(reinterpret_cast<const Unit*>(p)); }
};

struct Floats {
  using Register = __m256;
  using Sum = float;
  using Feature = float;
  static constexpr int WIDTH = 8, ROWS = 4, PANELS = 1;
  static MRT_INLINE Register zero() { return _mm256_setzero_ps(); }
  static MRT_INLINE Register load(const Unit* p) { return _mm256_castsi256_ps(Pairs::load(p)); }
  static MRT_INLINE Register broadcast(const Unit* p) { return _mm256_castsi256_ps(Pairs::broadcast(p)); }
  static MRT_INLINE void multiply_add(Register a, Register b, Register& sum) { sum = _mm256_fmadd_ps(a, b, sum); }
  static MRT_INLINE void store(Sum* p, Register v) { _mm256_store_ps(p, v); }
  static MRT_INLINE Register restore(const Sum* p) { return _mm256_load_ps(p); }
};

MRT_INLINE int32_t excess(const uint16_t* t, const uint16_t* best, int64_t count) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += 16) {
    const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(t + i));
    const __m256i b = _mm256_load_si256(reinterpret_cast<const __m256i*>(best + i));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_subs_epu16(a, b), ones));
  }
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
  int32_t total = 0;
  for (int32_t lane : lanes) total += lane;
  return total;
}

#else

// Four lanes that any compiler can map to its 128-bit registers.
struct Pairs {
  typedef int32_t Register __attribute__((vector_size(16)));
  using Sum = int32_t;
  using Feature = int16_t;
  static constexpr int WIDTH = 4, ROWS = 2, PANELS = 1;
  static MRT_INLINE Register zero() { return Register{}; }
  static MRT_INLINE Register load(const Unit* p) {
    Register v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static MRT_INLINE Register broadcast(const Unit* p) {
    const int32_t unit = static_cast<int32_t>(*p);
    return Register{unit, unit, unit, unit};
  }
  static MRT_INLINE void multiply_add(Register a, Register b, Register& sum) {
    sum += ((b << 16) >> 16) * ((a << 16) >> 16) + (b >> 16) * (a >> 16);
  }
  static MRT_INLINE void store(Sum* p, Register v) { memcpy(p, &v, sizeof v); }
  static MRT_INLINE Register restore(const Sum* p) { return load(reinterpret_cast<const Unit*>(p)); }
};

struct Floats {
  typedef float Register __attribute__((vector_size(16)));
  using Sum = float;
  using Feature = float;
  static constexpr int WIDTH = 4, ROWS = 2, PANELS = 1;
  static MRT_INLINE Register zero() { return Register{}; }
  static MRT_INLINE Register load(const Unit* p) {
    Register v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static MRT_INLINE Register broadcast(const Unit* p) {
    float unit;
    memcpy(&unit, p, sizeof unit);
    return Register{unit, unit, unit, unit};
  }
  static MRT_INLINE void multiply_add(Register a, Register b, Register& sum) { sum += a * b; }
  static MRT_INLINE void store(Sum* p, Register v) { memcpy(p, &v, sizeof v); }
  static MRT_INLINE Register restore(const Sum* p) { return load(reinterpret_cast<const Unit*>(p)); }
};

MRT_INLINE int32_t excess(const uint16_t* t, const uint16_t* best, int64_t count) {
  int32_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += t[i] > best[i] ? t[i] - best[i] : 0;
  return total;
}

#endif

#if !defined(MRT_AVX512)
struct Squares {
  double sums[16] = {};
  MRT_INLINE void add(const float* x) {
    for (int i = 0; i < 16; ++i) sums[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  MRT_INLINE double total() {
    for (int width = 8; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    return sums[0];
  }
};

struct Products {
  Squares squares;
  template <class T>
  MRT_INLINE void add(const double* x, const T* y) {
    for (int i = 0; i < 16; ++i) squares.sums[i] += x[i] * static_cast<double>(y[i]);
  }
  MRT_INLINE double total() { return squares.total(); }
};

struct SquaredDifferences {
  Squares squares;
  template <class T>
  MRT_INLINE void add(const double* x, const T* y) {
    for (int i = 0; i < 16; ++i) {
      const double difference = x[i] - static_cast<double>(y[i]);
      squares.sums[i] += difference * difference;
    }
  }
  MRT_INLINE double total() { return squares.total(); }
};

struct Rounder {
  double scale;
  int largest = 0;
  MRT_INLINE explicit Rounder(double s) : scale(s) {}
  MRT_INLINE void round(const float* x, int16_t* q) {
    constexpr double INTEGERS = 0x1.8p52;  // adding and subtracting it rounds to integers, half to even
    for (int i = 0; i < 16; ++i) {
      const int v = static_cast<int>((static_cast<double>(x[i]) * scale + INTEGERS) - INTEGERS);
      q[i] = static_cast<int16_t>(v);
      const int magnitude = v < 0 ? -v : v;
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  MRT_INLINE bool exceeds(int16_t bound) const { return largest > bound; }
};

MRT_INLINE void transpose(const Unit* in, int64_t stride, Unit* out) {
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 16; ++c) out[16 * c + r] = in[r * stride + c];
}
#endif

}  // namespace
}  // namespace mrt
