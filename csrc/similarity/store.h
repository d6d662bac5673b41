// Rounding float32 results to the type of the input, sixteen at a time where the instruction set can.
#pragma once

#include "similarity/similarity.h"
#include "tile/convert.h"
#include "tile/vector.h"

namespace mrt {
namespace {

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
