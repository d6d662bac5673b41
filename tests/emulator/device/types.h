// The words and types of CUDA C++ that kernels use: qualifiers, vectors with CUDA's sizes and alignments, half and bfloat16.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned width = 1, unsigned height = 1, unsigned depth = 1) : x(width), y(height), z(depth) {}
};

// Loads of up to 16 bytes. The alignment is what UndefinedBehaviorSanitizer checks and a device insists on.
// clang-format off
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
struct alignas(4) short2 { short x, y; };
struct alignas(8) short4 { short x, y, z, w; };
struct alignas(4) ushort2 { unsigned short x, y; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) longlong2 { long long x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
struct alignas(16) double2 { double x, y; };
// clang-format on

inline ushort2 make_ushort2(unsigned short x, unsigned short y) {
  return {x, y};
}
inline ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z, unsigned short w) {
  return {x, y, z, w};
}
inline short2 make_short2(short x, short y) {
  return {x, y};
}
inline short4 make_short4(short x, short y, short z, short w) {
  return {x, y, z, w};
}
inline int2 make_int2(int x, int y) {
  return {x, y};
}
inline int4 make_int4(int x, int y, int z, int w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline double2 make_double2(double x, double y) {
  return {x, y};
}

namespace mrt::emulator {

// The bits of a value, read as another type of the same size.
template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<To>);
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Round to nearest, ties to even, by integers: the same on every host.
inline uint16_t to_bfloat16(float value) {
  const uint32_t x = bits<uint32_t>(value);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((x + 0x7fff + (x >> 16 & 1)) >> 16);
}

inline float from_bfloat16(uint16_t half) {
  return bits<float>(static_cast<uint32_t>(half) << 16);
}

inline uint16_t to_float16(float value) {
  const uint32_t x = bits<uint32_t>(value), sign = x >> 16 & 0x8000, magnitude = x & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 65536 or more: infinity
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the multiple of 2^-24 in the low bits
    const float shifted = bits<float>(magnitude) + 0.5F;
    return static_cast<uint16_t>(sign | (bits<uint32_t>(shifted) - 0x3f000000));
  }
  const uint32_t rebased = magnitude - (112U << 23);  // exponents are biased by 127 and 15
  return static_cast<uint16_t>(sign | (rebased + 0xfff + (rebased >> 13 & 1)) >> 13);
}

inline float from_float16(uint16_t half) {
  const uint32_t sign = (half & 0x8000U) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ffU;
  if (exponent == 31) return bits<float>(sign | 0x7f800000 | fraction << 13);
  if (exponent > 0) return bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
  return sign == 0 ? magnitude : -magnitude;
}

}  // namespace mrt::emulator

// Only conversions: products of halves would be rounded to half on a device and to float here, so they do not compile.
struct __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float value) : bits(mrt::emulator::to_float16(value)) {}
  explicit operator float() const { return mrt::emulator::from_float16(bits); }
};

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : bits(mrt::emulator::to_bfloat16(value)) {}
  explicit operator float() const { return mrt::emulator::from_bfloat16(bits); }
};

inline float __half2float(__half value) {
  return static_cast<float>(value);
}
inline __half __float2half_rn(float value) {
  return __half(value);
}
inline __half __ushort_as_half(unsigned short value) {
  return mrt::emulator::bits<__half>(value);
}
inline unsigned short __half_as_ushort(__half value) {
  return value.bits;
}
inline float __bfloat162float(__nv_bfloat16 value) {
  return static_cast<float>(value);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return __nv_bfloat16(value);
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short value) {
  return mrt::emulator::bits<__nv_bfloat16>(value);
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) {
  return value.bits;
}
