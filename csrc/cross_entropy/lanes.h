// The float32 lanes of one register, written once with the compiler's vector types: exp, tanh, loads, rounded stores.
//
// exp(x) = 2^n (1 + q(r)),  n = rint(x / log 2),  r = x - n log 2 in two exact parts,  q(r) = r + r^2 p(r) of degree 6
//
// Error of exp on [LOWEST, 0], in units of 2^-24, relative: 0.07 the polynomial; 0.35 rounding r; 0.17 + 0.41 rounding
// r^2 p and q, all three over 2^-1/2; 1 the last addition: below 2.5, and below 4 without fused multiply-add. Beyond
// LOWEST the result is 0, NaN stays NaN. tests/cross_entropy/test_cross_entropy.py measures it over the whole range.
#pragma once

#include "tile/vector.h"

namespace mrt {
namespace {
namespace lanes {

#if defined(MRT_AVX512)
constexpr int COUNT = 16;
#elif defined(MRT_AVX2)
constexpr int COUNT = 8;
#else
constexpr int COUNT = 4;
#endif

typedef float Float __attribute__((vector_size(4 * COUNT)));
typedef uint32_t Bits __attribute__((vector_size(4 * COUNT)));

constexpr float INFINITE = __builtin_inff();
constexpr float LOWEST = -87.33654f;  // log 2^-126: below, exp is no normal number

MRT_INLINE Float fill(float value) {
  return value - Float{};
}
MRT_INLINE Bits bits(Float v) {
  return reinterpret_cast<Bits>(v);
}
MRT_INLINE Float floats(Bits v) {
  return reinterpret_cast<Float>(v);
}

// b where a is not larger: a NaN in b stays.
MRT_INLINE Float larger(Float a, Float b) {
#if defined(MRT_AVX512)
  return _mm512_max_ps(a, b);
#elif defined(MRT_AVX2)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

MRT_INLINE Float multiply_add(Float a, Float b, Float c) {
#if defined(MRT_AVX512)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(MRT_AVX2)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// Of two registers, in float64; lanes by halves, as everywhere.
MRT_INLINE double sum(Float a, Float b) {
  typedef double Doubles __attribute__((vector_size(8 * COUNT)));
  const Doubles both = __builtin_convertvector(a, Doubles) + __builtin_convertvector(b, Doubles);
  double lane[COUNT];
  memcpy(lane, &both, sizeof lane);
  for (int width = COUNT / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

MRT_INLINE float largest(Float v) {
  float lane[COUNT];
  memcpy(lane, &v, sizeof lane);
  for (int i = 1; i < COUNT; ++i) lane[0] = lane[0] > lane[i] ? lane[0] : lane[i];
  return lane[0];
}

struct Power {
  Float scale, q;  // exp(x) = scale (1 + q)
};

// For x in [LOWEST, 1]; meaningless elsewhere.
MRT_INLINE Power power(Float x) {
  const Float shifted = multiply_add(x, fill(0x1.715476p+0f), fill(0x1.8p23f));  // rint(x / log 2) in the low bits
  const Float n = shifted - 0x1.8p23f;
  Float r = multiply_add(n, fill(-0x1.62e4p-1f), x);  // the first factor has 15 bits: exact without fusing, too
  r = multiply_add(n, fill(-0x1.7f7d1cp-20f), r);
  Float p = multiply_add(fill(0x1.6a2434p-10f), r, fill(0x1.1239e2p-7f));
  p = multiply_add(p, r, fill(0x1.5558f2p-5f));
  p = multiply_add(p, r, fill(0x1.555492p-3f));
  p = multiply_add(p, r, fill(0x1.fffffcp-2f));
  return {floats((bits(shifted) << 23) + 0x3f800000u), multiply_add(p, r * r, r)};
}

MRT_INLINE Float exp(Float x) {
  const Power e = power(x);
  return x < LOWEST ? Float{} : multiply_add(e.scale, e.q, e.scale);
}

struct Tanh {
  Float value, slope;
};

// By exp(-2 |x|) - 1, which neither cancels near 0 nor loses the slope far from it.
MRT_INLINE Tanh tanh(Float x) {
  const Bits sign = bits(x) & 0x80000000u;
  const Float y = floats(bits(x) & 0x7fffffffu) * -2.0f;
  const Power e = power(y);
  const Float less = y < LOWEST ? fill(-1.0f) : multiply_add(e.scale, e.q, e.scale - 1.0f);
  const Float below = 2.0f + less;
  return {floats(bits(-less / below) | sign), 4.0f * (1.0f + less) / (below * below)};
}

// Two registers hold WIDTH neighbours, in an order of the type's own that load and store agree on.
constexpr int WIDTH = 2 * COUNT;

struct Two {
  Float a, b;
};

struct Float32 {
  using Element = float;
  static MRT_INLINE Two load(const float* p) {
    Two v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static MRT_INLINE void store(float* p, const Two& v) { memcpy(p, &v, sizeof v); }
};

// Even elements in a, odd ones in b: a shift or a mask loads 16 of them, where widening in order takes a shuffle more.
// Rounds to nearest, half to even; beyond the largest infinity. A NaN must end in 16 zero bits: it stays one.
struct Bfloat16 {
  using Element = uint16_t;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  static constexpr bool EVEN_IS_HIGH = true;  // which half of 32 bits the element at the lower address is
#else
  static constexpr bool EVEN_IS_HIGH = false;
#endif
  static MRT_INLINE Two load(const uint16_t* p) {
    Bits v;
    memcpy(&v, p, sizeof v);
    const Float low = floats(v << 16), high = floats(v & 0xffff0000u);
    return EVEN_IS_HIGH ? Two{high, low} : Two{low, high};
  }
  static MRT_INLINE Bits rounded(Float v) { return bits(v) + (((bits(v) >> 16) & 1u) + 0x7fffu); }
  static MRT_INLINE void store(uint16_t* p, const Two& v) {
    const Float low = EVEN_IS_HIGH ? v.b : v.a, high = EVEN_IS_HIGH ? v.a : v.b;
    const Bits out = (rounded(low) >> 16) | (rounded(high) & 0xffff0000u);
    memcpy(p, &out, sizeof out);
  }
};

struct Float16 {
  using Element = uint16_t;
#if defined(MRT_AVX512)
  static MRT_INLINE Float load_one(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static MRT_INLINE void store_one(uint16_t* p, Float v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(MRT_AVX2)
  static MRT_INLINE Float load_one(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static MRT_INLINE void store_one(uint16_t* p, Float v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  typedef uint16_t Halves __attribute__((vector_size(2 * COUNT)));
  static MRT_INLINE Float load_one(const uint16_t* p) {  // the exponent is moved by a product with a power of two
    Halves v;
    memcpy(&v, p, sizeof v);
    const Bits wide = __builtin_convertvector(v, Bits);
    const Bits finite = bits(floats((wide & 0x7fffu) << 13) * 0x1p112f);
    const Bits special = (wide & 0x7c00u) == 0x7c00u ? Bits{} + 0x7f800000u : Bits{};
    return floats(finite | special | ((wide & 0x8000u) << 16));
  }
  static MRT_INLINE void store_one(uint16_t* p, Float v) {
    const Bits sign = (bits(v) >> 16) & 0x8000u, size = bits(v) & 0x7fffffffu;
    const Bits small = bits(floats(size) + 0.5f) - 0x3f000000u;  // a float32 addition rounds subnormals at 2^-24
    const Bits normal = (size + 0xfffu + ((size >> 13) & 1u) - 0x38000000u) >> 13;
    Bits rounded = size < 0x38800000u ? small : normal;
    rounded = size >= 0x477ff000u ? Bits{} + 0x7c00u : rounded;
    rounded = v == v ? rounded : Bits{} + 0x7e00u;
    const Halves out = __builtin_convertvector(rounded | sign, Halves);
    memcpy(p, &out, sizeof out);
  }
#endif
  static MRT_INLINE Two load(const uint16_t* p) { return {load_one(p), load_one(p + COUNT)}; }
  static MRT_INLINE void store(uint16_t* p, const Two& v) {
    store_one(p, v.a);
    store_one(p + COUNT, v.b);
  }
};

// The first `count` of WIDTH neighbours; the rest reads as zero.
template <class Type>
MRT_INLINE Two load_first(const typename Type::Element* p, int64_t count) {
  typename Type::Element padded[WIDTH] = {};
  memcpy(padded, p, count * sizeof *p);
  return Type::load(padded);
}

template <class Type>
MRT_INLINE void store_first(typename Type::Element* p, const Two& v, int64_t count) {
  typename Type::Element padded[WIDTH];
  Type::store(padded, v);
  memcpy(p, padded, count * sizeof *p);
}

// v where the first `count` of WIDTH neighbours lie, `beyond` elsewhere.
template <class Type>
MRT_INLINE Two first(int64_t count, const Two& v, Float beyond) {
  typename Type::Element is_inside[WIDTH] = {};
  for (int64_t i = 0; i < count; ++i) is_inside[i] = 1;  // subnormal at the least, not zero
  const Two mask = Type::load(is_inside);
  return {mask.a > 0.0f ? v.a : beyond, mask.b > 0.0f ? v.b : beyond};
}

}  // namespace lanes
}  // namespace
}  // namespace mrt
