// Rounding float32 results to the type of the input, sixteen at a time where the instruction set can.
#pragma once

#include "similarity/similarity.h"
#include "tile/vector.h"

namespace mrt {
namespace {

// Round to nearest, half to even; beyond the largest infinity, NaN stays NaN.
MRT_INLINE uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

// Round to nearest, half to even, subnormals included; beyond 65519 infinity, NaN stays NaN.
MRT_INLINE uint16_t to_float16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  memcpy(&value, &magnitude, sizeof value);
  const float shifted = value + 0.5f;  // subnormal in float16: let a float32 addition round at 2^-24
  uint32_t small;
  memcpy(&small, &shifted, sizeof small);
  const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  const uint32_t finite = magnitude < 0x38800000 ? small - 0x3f000000 : normal;
  const uint32_t large = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  return static_cast<uint16_t>(sign | (magnitude >= 0x477ff000 ? large : finite));
}

// Sixteen floats past the caches, to a cache line of their own.
MRT_INLINE void stream(const float* in, float* out) {
#if defined(MRT_AVX512)
  _mm512_stream_ps(out, _mm512_load_ps(in));
#elif defined(MRT_AVX2)
  _mm256_stream_ps(out, _mm256_load_ps(in));
  _mm256_stream_ps(out + 8, _mm256_load_ps(in + 8));
#else
  memcpy(out, in, PANEL * sizeof *out);
#endif
}

// Before another thread may read what was streamed.
MRT_INLINE void finish_streams() {
#if !defined(MRT_PORTABLE)
  _mm_sfence();
#endif
}

// count <= 16 floats, rounded to `dtype`, to out[first …].
MRT_INLINE void store_row(const float* __restrict in, int64_t count, DType dtype, bool is_streamed, void* out,
                          int64_t first) {
  if (dtype == DType::float32) {
    float* to = static_cast<float*>(out) + first;
    if (count < PANEL) {
      for (int64_t c = 0; c < count; ++c) to[c] = in[c];
    } else if (is_streamed) {
      stream(in, to);
    } else {
      memcpy(to, in, PANEL * sizeof *to);
    }
    return;
  }
  uint16_t rounded[PANEL];
  if (dtype == DType::bfloat16) {
    for (int c = 0; c < PANEL; ++c) rounded[c] = to_bfloat16(in[c]);
  } else {
    for (int c = 0; c < PANEL; ++c) rounded[c] = to_float16(in[c]);
  }
  uint16_t* to = static_cast<uint16_t*>(out) + first;
  if (count == PANEL) {
    memcpy(to, rounded, sizeof rounded);
  } else {
    for (int64_t c = 0; c < count; ++c) to[c] = rounded[c];
  }
}

}  // namespace
}  // namespace mrt
