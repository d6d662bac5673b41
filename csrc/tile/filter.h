// Comparing sixteen scores of a tile with thresholds, and keeping the ones that pass.
#pragma once

#include "tile/vector.h"

namespace mrt {
namespace {

// at_least: bit c of the result says that scores[c] >= threshold; at_least_either: or that it is >= thresholds[c].
#if defined(MRT_AVX512)

MRT_INLINE uint32_t at_least(const int32_t* scores, int32_t threshold) {
  return _mm512_cmpge_epi32_mask(_mm512_load_si512(scores), _mm512_set1_epi32(threshold));
}
MRT_INLINE uint32_t at_least(const float* scores, float threshold) {
  return _mm512_cmp_ps_mask(_mm512_load_ps(scores), _mm512_set1_ps(threshold), _CMP_GE_OQ);
}
MRT_INLINE uint32_t at_least_either(const int32_t* scores, int32_t threshold, const int32_t* thresholds) {
  const __m512i lower = _mm512_min_epi32(_mm512_set1_epi32(threshold), _mm512_loadu_si512(thresholds));
  return _mm512_cmpge_epi32_mask(_mm512_load_si512(scores), lower);
}
MRT_INLINE uint32_t at_least_either(const float* scores, float threshold, const float* thresholds) {
  const __m512 lower = _mm512_min_ps(_mm512_set1_ps(threshold), _mm512_loadu_ps(thresholds));
  return _mm512_cmp_ps_mask(_mm512_load_ps(scores), lower, _CMP_GE_OQ);
}

// Bit c of the result: lane c, 0 or -1, is set.
template <class Lanes>
MRT_INLINE uint32_t lanes_set(const Lanes& lanes) {
  static_assert(sizeof lanes == sizeof(__m512i), "one register");
  return _mm512_movepi32_mask(reinterpret_cast<const __m512i&>(lanes));
}

// Bit r of the result: masks[r] is not 0.
MRT_INLINE uint32_t not_zero(const uint16_t* masks) {
  const __m256i all = _mm256_load_si256(reinterpret_cast<const __m256i*>(masks));
  return _mm256_cmpneq_epi16_mask(all, _mm256_setzero_si256());
}

// Writes the entries that `mask` names to out, in order; up to 16 entries of `out` are overwritten.
template <class T>
MRT_INLINE void compress(const T* values, uint32_t mask, T* out) {
  static_assert(sizeof(T) == 4, "one lane");
  const __m512i all = _mm512_loadu_si512(values);  // in a register first: compressing into memory is slow on Zen 4
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), all));
}

#else

#if defined(MRT_AVX2)

MRT_INLINE uint32_t at_least(const int32_t* scores, int32_t threshold) {
  uint32_t mask = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256i s = _mm256_load_si256(reinterpret_cast<const __m256i*>(scores + 8 * half));
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(threshold), s);
    mask |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(below))) << (8 * half);
  }
  return mask ^ 0xffff;
}
MRT_INLINE uint32_t at_least(const float* scores, float threshold) {
  uint32_t mask = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256 passes = _mm256_cmp_ps(_mm256_load_ps(scores + 8 * half), _mm256_set1_ps(threshold), _CMP_GE_OQ);
    mask |= static_cast<uint32_t>(_mm256_movemask_ps(passes)) << (8 * half);
  }
  return mask;
}

#else

template <class T>
MRT_INLINE uint32_t at_least(const T* scores, T threshold) {
  uint32_t mask = 0;
  for (int c = 0; c < PANEL; ++c) mask |= static_cast<uint32_t>(scores[c] >= threshold) << c;
  return mask;
}

#endif

template <class Lanes>
MRT_INLINE uint32_t lanes_set(const Lanes& lanes) {
  uint32_t mask = 0;
  for (int c = 0; c < PANEL; ++c) mask |= static_cast<uint32_t>(lanes[c] & 1) << c;
  return mask;
}

template <class T>
MRT_INLINE uint32_t at_least_either(const T* scores, T threshold, const T* thresholds) {
  uint32_t mask = 0;
  for (int c = 0; c < PANEL; ++c) {
    const T lower = thresholds[c] < threshold ? thresholds[c] : threshold;
    mask |= static_cast<uint32_t>(scores[c] >= lower) << c;
  }
  return mask;
}

MRT_INLINE uint32_t not_zero(const uint16_t* masks) {
  uint32_t rows = 0;
  for (int r = 0; r < PANEL; ++r) rows |= static_cast<uint32_t>(masks[r] != 0) << r;
  return rows;
}

template <class T>
MRT_INLINE void compress(const T* values, uint32_t mask, T* out) {
  for (; mask != 0; mask &= mask - 1) *out++ = values[__builtin_ctz(mask)];
}

#endif

template <class T>
MRT_INLINE int64_t count_at_least(const T* values, int64_t n, T threshold) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += values[i] >= threshold ? 1 : 0;
  return count;
}

MRT_INLINE int32_t between(int32_t low, int32_t high) {
  return static_cast<int32_t>((static_cast<int64_t>(low) + static_cast<int64_t>(high)) >> 1);
}
MRT_INLINE float between(float low, float high) {
  return low / 2 + high / 2;
}

// A threshold that at least k of n values reach, and at most k + slack of them unless values are equal: by bisection,
// which reads the values a few times in order instead of moving them. k <= n.
template <class T>
MRT_INLINE T reached_by(const T* values, int64_t n, int64_t k, int64_t slack) {
  T low = values[0], high = values[0];
  for (int64_t i = 1; i < n; ++i) {
    low = values[i] < low ? values[i] : low;
    high = values[i] > high ? values[i] : high;
  }
  if (count_at_least(values, n, high) >= k) return high;
  for (;;) {  // at least k reach low, fewer reach high
    const T middle = between(low, high);
    if (!(low < middle && middle < high)) return low;
    const int64_t count = count_at_least(values, n, middle);
    (count >= k ? low : high) = middle;
    if (count >= k && count <= k + slack) return middle;
  }
}

}  // namespace
}  // namespace mrt
