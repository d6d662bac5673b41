// A given matrix of similarities in fixed point, candidate by candidate.
//
//   t[j][i] = min(32767, rint(float32(s[i][j] / scale) * (unit_i * quality_j))), s / scale in float64
#pragma once

#include <type_traits>

#include "facility_location/features/pairs.h"
#include "facility_location/matrix/view.h"
#include "tile/convert.h"

namespace mrt {
namespace {

constexpr int64_t STEP_ROWS = 256, STEP_CANDIDATES = 64;  // of one call

template <class T>
MRT_INLINE double wide(T value) {
  return static_cast<double>(value);
}

// Sixteen similarities of row i, 0 beyond the candidates.
template <class T, class Widen>
MRT_INLINE void matrix_row(const MatrixView& s, int64_t i, int64_t j, int count, const Widen& widen, Factors& out) {
  const T* const in = static_cast<const T*>(s.data) + i * s.row_stride + j * s.column_stride;
  if constexpr (std::is_same<T, float>::value) {  // a division by 1 takes as long as any
    if (s.scale == 1.0 && s.column_stride == 1 && count == PANEL) {
      memcpy(&out, in, sizeof out);
      return;
    }
  }
  for (int c = 0; c < PANEL; ++c)
    out[c] = c < count ? static_cast<float>(widen(in[c * s.column_stride]) / s.scale) : 0.0f;
}

// Candidates j … j + 63 with rows i … i + 255, as many as there are.
template <class T, class Widen>
MRT_INLINE void steps_of(const MatrixView& s, const PairRule& rule, int64_t first_j, int64_t first_i, uint16_t* t,
                         int64_t stride, const Widen& widen) {
  const int64_t last_j = first_j + STEP_CANDIDATES < s.N ? first_j + STEP_CANDIDATES : s.N;
  const int64_t last_i = first_i + STEP_ROWS < s.M ? first_i + STEP_ROWS : s.M;
  for (int64_t i = first_i; i < last_i; i += PANEL) {
    const int rows = static_cast<int>(last_i - i < PANEL ? last_i - i : PANEL);
    for (int64_t j = first_j; j < last_j; j += PANEL) {
      const int count = static_cast<int>(last_j - j < PANEL ? last_j - j : PANEL);
      Factors quality;
      memcpy(&quality, rule.quality + j, sizeof quality);
      alignas(64) int32_t tile[TILE] = {}, turned[TILE];
      for (int r = 0; r < rows; ++r) {
        Factors similarity;
        Steps steps;
        matrix_row<T>(s, i + r, j, count, widen, similarity);
        rounded_steps(similarity * (rule.unit[i + r] * quality), steps);
        memcpy(tile + r * PANEL, &steps, sizeof steps);
      }
      transpose(reinterpret_cast<const Unit*>(tile), PANEL, reinterpret_cast<Unit*>(turned));
      for (int c = 0; c < count; ++c) {
        Steps steps;
        memcpy(&steps, turned + c * PANEL, sizeof steps);
        const Reached narrow = __builtin_convertvector(steps, Reached);
        memcpy(t + (j + c) * stride + i, &narrow, sizeof narrow);
      }
    }
  }
}

void matrix_steps(const MatrixView& s, const PairRule& rule, int64_t j, int64_t i, uint16_t* t, int64_t stride) {
  switch (s.type) {
    case MatrixType::float32:
      return steps_of<float>(s, rule, j, i, t, stride, wide<float>);
    case MatrixType::float64:
      return steps_of<double>(s, rule, j, i, t, stride, wide<double>);
    case MatrixType::uint16:
      return steps_of<uint16_t>(s, rule, j, i, t, stride, wide<uint16_t>);
    case MatrixType::bfloat16:
      return steps_of<uint16_t>(s, rule, j, i, t, stride, [](uint16_t bits) { return wide(from_bfloat16(bits)); });
    case MatrixType::float16:
      return steps_of<uint16_t>(s, rule, j, i, t, stride, [](uint16_t bits) { return wide(from_float16(bits)); });
  }
}

}  // namespace
}  // namespace mrt
