// The language of common/cuda_language.h on this machine: the build of the emulated device includes it before every source.
#pragma once

#include "device/arithmetic.h"
#include "device/primitives.h"
#include "device/runtime.h"

#define MRT_SHARED(type, name, count) type(&name)[count] = mrt::emulator::shared<type[count]>([] {})

namespace mrt {

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulator::dynamic_shared_bytes());
}

inline void sync_grid() {
  emulator::sync_grid();
}

// Byte `at` of one of a lane's registers.
template <class T>
int byte_of(unsigned word, unsigned at) {
  return static_cast<T>(word >> (8 * at) & 0xff);
}

template <class A, class B>
void multiply_bytes(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  static_assert(sizeof(A) == 1 && sizeof(B) == 1);
  const auto two = [](unsigned low, unsigned high) { return static_cast<uint64_t>(high) << 32 | low; };
  const auto meet = [](uint64_t words) { return emulator::meet("multiply_bytes", 0xffffffff, words); };
  const emulator::Values near = meet(two(a[0], a[1])), far = meet(two(a[2], a[3])), others = meet(two(b[0], b[1]));
  const unsigned lane = emulator::lane();
  for (unsigned e = 0; e < 4; ++e) {
    const unsigned row = lane / 4, column = lane % 4 * 2 + e % 2, shift = e / 2 * 32;  // the row, or eight below it
    unsigned sum = static_cast<unsigned>(c[e]);                                        // wraps around
    for (unsigned k = 0; k < 32; ++k) {
      const emulator::Values& left = k < 16 ? near : far;
      const auto x = static_cast<unsigned>(left.of[row * 4 + k % 16 / 4] >> shift);
      const auto y = static_cast<unsigned>(others.of[column * 4 + k % 16 / 4] >> (k / 16 * 32));
      sum += static_cast<unsigned>(byte_of<A>(x, k % 4) * byte_of<B>(y, k % 4));
    }
    c[e] = static_cast<int>(sum);
  }
}

}  // namespace mrt
