// What the registers of this machine can do: multiplications and additions with nothing to load, as many as asked for.
#pragma once

#include "tile/features.h"
#include "tile/vector.h"

namespace mrt {
namespace {

constexpr Unit ONE = 0x3f800000;  // of float32: subnormal numbers would take a hundred times as long

// Sixteen independent sums at most, more than the latency of an addition times its rate; returns the operations done, at
// least `flops`.
template <class Kind>
int64_t multiply_only(int64_t flops) {
  constexpr int KEPT = Kind::ROWS * Kind::PANELS * PANEL / Kind::WIDTH, SUMS = KEPT < 16 ? KEPT : 16;
  constexpr int64_t PER_STEP = int64_t{2} * SUMS * Kind::WIDTH * (sizeof(Unit) / sizeof(typename Kind::Feature));
  Unit unit = ONE;
  asm volatile("" : "+m"(unit));
  typename Kind::Register sums[SUMS];
#pragma GCC unroll 16
  for (int i = 0; i < SUMS; ++i) {
    const Unit start = ONE + static_cast<Unit>(i);  // different sums, or the compiler computes one of them
    sums[i] = Kind::broadcast(&start);
  }
  const typename Kind::Register factor = Kind::broadcast(&unit);
  int64_t done = 0;
#pragma GCC unroll 1
  for (; done < flops; done += PER_STEP)
#pragma GCC unroll 16
    for (int i = 0; i < SUMS; ++i) Kind::multiply_add(factor, factor, sums[i]);
  alignas(64) typename Kind::Sum kept[PANEL];
#pragma GCC unroll 16
  for (int i = 0; i < SUMS; ++i) {
    Kind::store(kept, sums[i]);
    asm volatile("" : : "m"(kept) : "memory");
  }
  return done;
}

}  // namespace
}  // namespace mrt
