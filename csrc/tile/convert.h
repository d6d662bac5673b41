// bfloat16 and float16, as bits, from and to float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "tile/features.h"

namespace mrt {
namespace {

MRT_INLINE float from_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

// Exact, subnormals and infinities included: the exponent is moved by a product with a power of two.
MRT_INLINE float from_float16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits & 0x7fff) << 13;
  float value;
  memcpy(&value, &wide, sizeof value);
  value *= 0x1p112f;
  uint32_t out;
  memcpy(&out, &value, sizeof out);
  out |= (bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  out |= static_cast<uint32_t>(bits & 0x8000) << 16;
  memcpy(&value, &out, sizeof value);
  return value;
}

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

}  // namespace
}  // namespace mrt
