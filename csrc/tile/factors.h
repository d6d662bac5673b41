// The factors of matrix products, float32 and bfloat16, with float32 sums: one arithmetic for all instruction sets.
//
// A float32 is multiplied and added with one rounding. A unit of two bfloat16 adds two products, sum = fma(a[1], b[1], sum), then sum = fma(a[0], b[0], sum); each is rounded to nearest
// even, subnormal numbers are zeros on the way in and on the way out. That is what vdpbf16ps does. Without it two fused
// multiply-adds do the same where MXCSR says so, and plain C++ everywhere else.
#pragma once

#include "tile/vector.h"

namespace mrt {
namespace {

// LANES: rows of a packed panel, at most 16; ROWS of them, times VECTORS registers of columns, are summed at a time.
#if defined(MRT_AVX512)
struct FusedFloats : Floats {
  static constexpr int LANES = 14, ROWS = 14, VECTORS = 2;  // 28 of 32 registers are sums
  static MRT_INLINE void store_sum(float* out, const float* start, Register sum) {
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(start), sum));
  }
};
#elif defined(MRT_AVX2)
struct FusedFloats : Floats {
  static constexpr int LANES = 12, ROWS = 6, VECTORS = 2;  // 12 of 16
  static MRT_INLINE void store_sum(float* out, const float* start, Register sum) {
    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(start), sum));
  }
};
#else
struct FusedFloats : Floats {
  static constexpr int LANES = 16, ROWS = 2, VECTORS = 4;
  static MRT_INLINE void multiply_add(Register a, Register b, Register& sum) {
    for (int i = 0; i < WIDTH; ++i) sum[i] = __builtin_fmaf(a[i], b[i], sum[i]);
  }
  static MRT_INLINE void store_sum(float* out, const float* start, Register sum) {
    for (int i = 0; i < WIDTH; ++i) out[i] = start[i] + sum[i];
  }
};
#endif

#if defined(MRT_AVX512)

template <bool HAS_DOT>
struct Halves : FusedFloats {
  using Feature = uint16_t;
  static constexpr int LANES = HAS_DOT ? 14 : 12, ROWS = LANES;  // 24 sums leave room for both halves of the columns
  static MRT_INLINE Register high(Register a) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(-0x10000)));
  }
  static MRT_INLINE Register low(Register a) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 16));
  }
  // Inline, because gcc 12 may copy the sum; volatile, because MXCSR must hold what Flushing sets there.
  static MRT_INLINE void multiply_add(Register a, Register b, Register& sum) {
    if (HAS_DOT) {
      asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
    } else {
      asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(high(b)), "v"(high(a)));
      asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(low(b)), "v"(low(a)));
    }
  }
};

#elif defined(MRT_AVX2)

template <bool>
struct Halves : FusedFloats {
  using Feature = uint16_t;
  static constexpr int ROWS = 4;
  static MRT_INLINE Register high(Register a) {
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(-0x10000)));
  }
  static MRT_INLINE Register low(Register a) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 16));
  }
  static MRT_INLINE void multiply_add(Register a, Register b, Register& sum) {
    asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(high(b)), "x"(high(a)));
    asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(low(b)), "x"(low(a)));
  }
};

#else

template <bool>
struct Halves : FusedFloats {
  using Feature = uint16_t;
  static constexpr float SMALLEST = 0x1p-126f;  // of the normal numbers
  // fma(a, b, sum), its result flushed if it is tiny after rounding to 24 bits with any exponent: fma itself rounds to
  // multiples of 2^-149 there, so of what it rounds up to 2^-126 the part below 2^-126 - 2^-151 is zero.
  static MRT_INLINE float flushed(float a, float b, float sum) {
    const float result = __builtin_fmaf(flushed(a), flushed(b), sum), size = __builtin_fabsf(result);
    if (!(size <= SMALLEST)) return result;
    const double exact = static_cast<double>(flushed(a)) * static_cast<double>(flushed(b)) + static_cast<double>(sum);
    const bool is_tiny = size < SMALLEST || __builtin_fabs(exact) < 0x1p-126 - 0x1p-151;
    return is_tiny ? __builtin_copysignf(0.0f, result) : result;
  }
  static MRT_INLINE float flushed(float x) { return __builtin_fabsf(x) < SMALLEST ? __builtin_copysignf(0.0f, x) : x; }
  static MRT_INLINE float half(float unit, bool is_high) {
    Unit bits;
    memcpy(&bits, &unit, sizeof bits);
    bits = is_high ? bits & 0xffff0000u : bits << 16;
    memcpy(&unit, &bits, sizeof unit);
    return unit;
  }
  static MRT_INLINE void multiply_add(Register a, Register b, Register& sum) {
    for (int i = 0; i < WIDTH; ++i) {
      const float first = flushed(half(a[i], true), half(b[i], true), sum[i]);
      sum[i] = flushed(half(a[i], false), half(b[i], false), first);
    }
  }
};

#endif

// Between its beginning and its end subnormal numbers are zeros for this thread, where Kind's products need that.
template <class Kind>
struct Flushing {
  MRT_INLINE void end() const {}
};
#if !defined(MRT_PORTABLE)
template <>
struct Flushing<Halves<false>> {
  const unsigned before = _mm_getcsr();
  MRT_INLINE Flushing() { _mm_setcsr(before | 0x8040u); }  // FTZ and DAZ
  MRT_INLINE void end() const { _mm_setcsr(before); }
};
#endif

// What is done with a register hereafter is done after everything volatile before.
template <class Register>
MRT_INLINE void settle(Register& v) {
#if defined(MRT_AVX512)
  asm volatile("" : "+v"(v));
#elif defined(MRT_AVX2)
  asm volatile("" : "+x"(v));
#else
  (void)v;
#endif
}

}  // namespace
}  // namespace mrt
