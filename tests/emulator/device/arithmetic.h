// CUDA's arithmetic of one thread: cached loads, bits, roundings that must not be fused, small products and pairs of 16 bits.
#pragma once

#include <cmath>

#include "device/types.h"

namespace mrt::emulator {

// One 16-bit operation on both halves of a word.
template <class Operation>
unsigned by_halves(unsigned a, unsigned b, Operation operation) {
  const unsigned low = operation(a & 0xffff, b & 0xffff), high = operation(a >> 16, b >> 16);
  return high << 16 | (low & 0xffff);
}

template <class Byte>
int byte_of(unsigned word, int index) {
  return static_cast<Byte>(word >> 8 * index & 0xff);
}

template <class Half>
int half_of(unsigned word, int index) {
  return static_cast<Half>(word >> 16 * index & 0xffff);
}

}  // namespace mrt::emulator

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

// Byte n of the result is byte (selector >> 4 n & 7) of the eight of low and high.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (unsigned n = 0; n < 4; ++n) {
    result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * n) & 7)) & 0xff) << (8 * n);
  }
  return result;
}
inline unsigned __float_as_uint(float value) {
  return mrt::emulator::bits<unsigned>(value);
}
inline int __float_as_int(float value) {
  return mrt::emulator::bits<int>(value);
}
inline float __uint_as_float(unsigned value) {
  return mrt::emulator::bits<float>(value);
}
inline float __int_as_float(int value) {
  return mrt::emulator::bits<float>(value);
}
inline long long __double_as_longlong(double value) {
  return mrt::emulator::bits<long long>(value);
}
inline double __longlong_as_double(long long value) {
  return mrt::emulator::bits<double>(value);
}

inline int __popc(unsigned value) {
  return __builtin_popcount(value);
}
inline int __popcll(unsigned long long value) {
  return __builtin_popcountll(value);
}
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline int __ffs(int value) {
  return __builtin_ffs(value);
}
inline int __ffsll(long long value) {
  return __builtin_ffsll(value);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fsqrt_rn(float a) {
  return std::sqrt(a);
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline double __dsqrt_rn(double a) {
  return std::sqrt(a);
}
inline double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}

// Half to even; only for values in range, where every host agrees.
inline int __float2int_rn(float value) {
  return static_cast<int>(std::lrint(value));
}
inline int __double2int_rn(double value) {
  return static_cast<int>(std::lrint(value));
}
inline long long __double2ll_rn(double value) {
  return std::llrint(value);
}
inline float __int2float_rn(int value) {
  return static_cast<float>(value);
}
inline float __uint2float_rn(unsigned value) {
  return static_cast<float>(value);
}
inline float __ll2float_rn(long long value) {
  return static_cast<float>(value);
}

// Four products of bytes, or two of halves of `a` with the low or high bytes of `b`, added to c.
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += mrt::emulator::byte_of<int8_t>(a, i) * mrt::emulator::byte_of<int8_t>(b, i);
  return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += mrt::emulator::byte_of<uint8_t>(a, i) * mrt::emulator::byte_of<uint8_t>(b, i);
  return c;
}
inline int __dp2a_lo(int a, int b, int c) {
  for (int i = 0; i < 2; ++i) c += mrt::emulator::half_of<int16_t>(a, i) * mrt::emulator::byte_of<int8_t>(b, i);
  return c;
}
inline int __dp2a_hi(int a, int b, int c) {
  for (int i = 0; i < 2; ++i) c += mrt::emulator::half_of<int16_t>(a, i) * mrt::emulator::byte_of<int8_t>(b, 2 + i);
  return c;
}
inline unsigned __dp2a_lo(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 2; ++i) c += mrt::emulator::half_of<uint16_t>(a, i) * mrt::emulator::byte_of<uint8_t>(b, i);
  return c;
}
inline unsigned __dp2a_hi(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 2; ++i) c += mrt::emulator::half_of<uint16_t>(a, i) * mrt::emulator::byte_of<uint8_t>(b, 2 + i);
  return c;
}

inline unsigned __vadd2(unsigned a, unsigned b) {
  return mrt::emulator::by_halves(a, b, [](unsigned x, unsigned y) { return x + y; });
}
inline unsigned __vmaxu2(unsigned a, unsigned b) {
  return mrt::emulator::by_halves(a, b, [](unsigned x, unsigned y) { return max(x, y); });
}
inline unsigned __vminu2(unsigned a, unsigned b) {
  return mrt::emulator::by_halves(a, b, [](unsigned x, unsigned y) { return min(x, y); });
}
// Unsigned, stopping at zero: max(x - y, 0).
inline unsigned __vsubus2(unsigned a, unsigned b) {
  return mrt::emulator::by_halves(a, b, [](unsigned x, unsigned y) { return x - min(x, y); });
}
// |x - y| of both halves, summed.
inline unsigned __vsadu2(unsigned a, unsigned b) {
  const unsigned both = mrt::emulator::by_halves(a, b, [](unsigned x, unsigned y) { return max(x, y) - min(x, y); });
  return (both >> 16) + (both & 0xffff);
}
