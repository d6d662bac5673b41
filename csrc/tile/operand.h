// Packing an operand of a matrix product: a block of elements of any type and strides becomes panels of up to 16 lanes.
//
// Element (i, k) of an operand lies at data + i * row_stride + k * column_stride; lanes are rows i, units run along k.
// A float32 unit is one element; a bfloat16 unit is two of consecutive k, the first in the low half. float32 becomes
// bfloat16 by rounding to nearest even. What is beyond the matrix is zero.
#pragma once

#include "tile/convert.h"
#include "tile/features.h"
#include "tile/vector.h"

namespace mrt {
namespace {

constexpr int LONGEST_RUN = 2 * PANEL;  // elements of a lane in a block of 16 units of bfloat16

// n elements from number `first` on, `step` apart, as float32; the rest of `count` are zeros.
template <class T, class Widen>
MRT_INLINE void widen(const T* from, int64_t step, int64_t n, int64_t count, const Widen& value,
                      float* __restrict out) {
  if (step == 1) {
    for (int64_t j = 0; j < n; ++j) out[j] = value(from[j]);
  } else {
    for (int64_t j = 0; j < n; ++j) out[j] = value(from[j * step]);
  }
  for (int64_t j = n; j < count; ++j) out[j] = 0.0f;
}

MRT_INLINE void load_run(const Features& x, int64_t first, int64_t step, int64_t n, int64_t count,
                         float* __restrict out) {
  if (x.dtype == DType::float32) {
    widen(static_cast<const float*>(x.data) + first, step, n, count, [](float v) { return v; }, out);
  } else if (x.dtype == DType::bfloat16) {
    widen(static_cast<const uint16_t*>(x.data) + first, step, n, count, from_bfloat16, out);
  } else {
    widen(static_cast<const uint16_t*>(x.data) + first, step, n, count, from_float16, out);
  }
}

MRT_INLINE Unit bits_of(float x) {
  Unit bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// How elements become units. PER: elements of one unit.
struct FloatUnits {
  static constexpr int PER = 1;
  static constexpr DType DTYPE = DType::float32;
  using Element = Unit;
  static MRT_INLINE void along(const float* x, Unit* __restrict out) {
    for (int j = 0; j < PANEL; ++j) out[j] = bits_of(x[j]);
  }
  static MRT_INLINE void across(const float* x, const float*, Unit* __restrict out) { along(x, out); }
  static MRT_INLINE void across(const Unit* x, const Unit*, Unit* __restrict out) { memcpy(out, x, PANEL * sizeof *x); }
};

struct HalfUnits {
  static constexpr int PER = 2;
  static constexpr DType DTYPE = DType::bfloat16;
  using Element = uint16_t;
  static MRT_INLINE Unit pair(uint16_t low, uint16_t high) { return low | static_cast<Unit>(high) << 16; }
  static MRT_INLINE void along(const float* x, Unit* __restrict out) {
    for (int j = 0; j < PANEL; ++j) out[j] = pair(to_bfloat16(x[2 * j]), to_bfloat16(x[2 * j + 1]));
  }
  static MRT_INLINE void across(const float* x, const float* next, Unit* __restrict out) {
    for (int j = 0; j < PANEL; ++j) out[j] = pair(to_bfloat16(x[j]), to_bfloat16(next[j]));
  }
  static MRT_INLINE void across(const uint16_t* x, const uint16_t* next, Unit* __restrict out) {
    for (int j = 0; j < PANEL; ++j) out[j] = pair(x[j], next[j]);
  }
};

// Units first … first + 15 (fewer at the end of K) of `lanes` rows that lie along memory.
template <class Units>
MRT_INLINE void pack_along(const Features& x, int64_t row, int64_t lanes, int64_t unit, int64_t count, Unit* out) {
  constexpr int PER = Units::PER;
  const int64_t k = unit * PER, n = x.columns - k < PANEL * PER ? x.columns - k : PANEL * PER;
  alignas(64) Unit staged[PANEL * PANEL], turned[PANEL * PANEL];
  const char* const start =
      static_cast<const char*>(x.data) + (row * x.row_stride + k * x.column_stride) * element_size(x.dtype);
  const bool is_direct = x.dtype == Units::DTYPE && x.column_stride == 1 && x.row_stride % PER == 0 &&
                         reinterpret_cast<uintptr_t>(start) % sizeof(Unit) == 0 && lanes == PANEL && n == PANEL * PER;
  if (!is_direct) {
    for (int64_t r = 0; r < lanes; ++r) {
      float run[LONGEST_RUN];
      load_run(x, (row + r) * x.row_stride + k * x.column_stride, x.column_stride, n, PANEL * PER, run);
      Units::along(run, staged + r * PANEL);
    }
    memset(staged + lanes * PANEL, 0, (PANEL - lanes) * PANEL * sizeof(Unit));
  }
  const Unit* const in = is_direct ? reinterpret_cast<const Unit*>(start) : staged;
  transpose(in, is_direct ? x.row_stride / PER : PANEL, count == PANEL ? out : turned);
  if (count < PANEL) memcpy(out, turned, count * PANEL * sizeof(Unit));
}

// One unit of `lanes` rows that lie across memory, each next to the one before.
template <class Units>
MRT_INLINE void pack_across(const Features& x, int64_t row, int64_t lanes, int64_t unit, Unit* out) {
  const int64_t k = unit * Units::PER, first = row * x.row_stride + k * x.column_stride;
  const bool has_next = Units::PER == 2 && k + 1 < x.columns;
  if (x.dtype == Units::DTYPE && x.row_stride == 1 && lanes == PANEL && (Units::PER == 1 || has_next)) {
    const auto* const from = static_cast<const typename Units::Element*>(x.data) + first;
    Units::across(from, Units::PER == 2 ? from + x.column_stride : nullptr, out);
    return;
  }
  float low[PANEL], high[PANEL];
  load_run(x, first, x.row_stride, lanes, PANEL, low);
  load_run(x, first + (has_next ? x.column_stride : 0), x.row_stride, has_next ? lanes : 0, PANEL, high);
  Units::across(low, high, out);
}

// Units first … first + count - 1 of one panel: of rows row … row + lanes - 1.
template <class Units>
MRT_INLINE void pack_panel(const Features& x, int64_t row, int64_t lanes, int64_t first, int64_t count, Unit* out) {
  if (x.column_stride == 1) {
    for (int64_t u = 0; u < count; u += PANEL)
      pack_along<Units>(x, row, lanes, first + u, count - u < PANEL ? count - u : PANEL, out + u * PANEL);
  } else {
    for (int64_t u = 0; u < count; ++u) pack_across<Units>(x, row, lanes, first + u, out + u * PANEL);
  }
}

}  // namespace
}  // namespace mrt
