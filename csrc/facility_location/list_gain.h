// The gain of a candidate from its list, which loses the pairs that are reached: what an instruction set does best with
// four bytes a pair and two bytes a row at random places.
#pragma once

#include "facility_location/lists.h"
#include "tile/filter.h"

namespace mrt {
namespace {

constexpr uint32_t STEP_MASK = (1u << STEP_BITS) - 1;

// Adds up max(t - reached, 0) of `count` pairs and writes those above to `out`, which may begin at or before `pairs`.
// Returns how many those are.
#if defined(MRT_AVX512)

MRT_INLINE int64_t live_pairs(const uint32_t* pairs, int64_t count, const uint16_t* reached, uint32_t* out,
                              int64_t& gain) {
  const uint32_t* const begin = out;
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 16) {
    const auto inside = static_cast<__mmask16>(count - i >= 16 ? 0xffff : (1 << (count - i)) - 1);
    const __m512i all = _mm512_maskz_loadu_epi32(inside, pairs + i);
    const __m512i rows = _mm512_srli_epi32(all, STEP_BITS);
    const __m512i wide = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), inside, rows, reached, 2);
    const __m512i best = _mm512_and_si512(wide, _mm512_set1_epi32(0xffff));
    const __m512i t = _mm512_and_si512(all, _mm512_set1_epi32(static_cast<int>(STEP_MASK)));
    const __mmask16 above = _mm512_mask_cmpgt_epi32_mask(inside, t, best);
    sum = _mm512_add_epi32(sum, _mm512_maskz_sub_epi32(above, t, best));
    const int kept = __builtin_popcount(above);
    _mm512_mask_storeu_epi32(out, static_cast<__mmask16>((1 << kept) - 1), _mm512_maskz_compress_epi32(above, all));
    out += kept;
  }
  gain += _mm512_reduce_add_epi32(sum);  // at most 65,536 / 16 pairs a lane
  return out - begin;
}

#else

MRT_INLINE int64_t live_pairs(const uint32_t* pairs, int64_t count, const uint16_t* reached, uint32_t* out,
                              int64_t& gain) {
  const uint32_t* const begin = out;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t pair = pairs[i], t = pair & STEP_MASK, best = reached[pair >> STEP_BITS];
    *out = pair;
    out += t > best;
    gain += t > best ? t - best : 0;
  }
  return out - begin;
}

#endif

// The gain of a list of *length words over what is reached [M, and one more]; shortens it.
int64_t list_gain(uint32_t* list, int64_t* length, const uint16_t* reached) {
  int64_t gain = 0, to = 0;
  for (int64_t at = 0; at < *length;) {
    const uint32_t first_row = list[at], count = list[at + 1];
    const int64_t kept = live_pairs(list + at + CHUNK_HEAD, count, reached + first_row, list + to + CHUNK_HEAD, gain);
    if (kept > 0) {
      list[to] = first_row;
      list[to + 1] = static_cast<uint32_t>(kept);
      to += CHUNK_HEAD + kept;
    }
    at += CHUNK_HEAD + count;
  }
  *length = to;
  return gain;
}

}  // namespace
}  // namespace mrt
