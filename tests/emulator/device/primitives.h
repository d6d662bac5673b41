// What the threads of a block, of a warp and of a grid do together, under the names that CUDA gives it.
#pragma once

#include "device/machine.h"

namespace mrt::emulator {

template <class T, class... Types>
constexpr bool is_one_of = (std::is_same_v<T, Types> || ...);

// The types that a device's shuffles and matches take.
template <class T>
constexpr bool is_word = is_one_of<T, int, unsigned, long, unsigned long, long long, unsigned long long, float, double>;

template <class T>
uint64_t to_word(T value) {
  static_assert(is_word<T>, "warp primitives take numbers of 32 and 64 bits");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}

template <class T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// The value of lane `source`; a lane that is outside the mask, has exited or was never there has none.
template <class T>
T value_of(const char* primitive, unsigned mask, T value, int source) {
  const Values values = meet(primitive, mask, to_word(value));
  if ((values.present >> source & 1) == 0) {
    fail(std::string(primitive) + " reads lane " + std::to_string(source) + ", which does not take part");
  }
  return from_word<T>(values.of[source]);
}

inline int first_of_segment(int width) {
  return static_cast<int>(lane()) & ~(width - 1);
}

template <class T, class Operation>
T reduce(const char* primitive, unsigned mask, T value, Operation operation) {
  const Values values = meet(primitive, mask, to_word(value));
  T result = value;
  for (unsigned other = 0; other < WARP; ++other) {
    if ((values.present >> other & 1) != 0 && other != lane()) {
      result = operation(result, from_word<T>(values.of[other]));
    }
  }
  return result;
}

// Replaces *target by operation(*target) and returns what was there. Relaxed, like a device's: it orders no other memory.
template <class T, class Operation>
T atomically(T* target, Operation operation) {
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  Word* const word = reinterpret_cast<Word*>(target);
  Word before = __atomic_load_n(word, __ATOMIC_RELAXED);
  for (;;) {
    const Word after = bits<Word>(operation(bits<T>(before)));
    if (__atomic_compare_exchange_n(word, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      return bits<T>(before);
    }
  }
}

// A parameter from which no type is deduced: the target's decides.
template <class T>
using Same = std::common_type_t<T>;

template <class T>
constexpr bool is_atomic_integer = is_one_of<T, int, unsigned, unsigned long long>;

}  // namespace mrt::emulator

inline void __syncthreads() {
  mrt::emulator::sync_block(false);
}
inline int __syncthreads_count(int predicate) {
  return mrt::emulator::sync_block(predicate != 0).holding;
}
inline int __syncthreads_and(int predicate) {
  const auto count = mrt::emulator::sync_block(predicate != 0);
  return count.holding == count.threads;
}
inline int __syncthreads_or(int predicate) {
  return mrt::emulator::sync_block(predicate != 0).holding > 0;
}
inline void __syncwarp(unsigned mask = 0xffffffff) {
  mrt::emulator::meet("__syncwarp", mask, 0, true);
}
inline void __threadfence() {
  mrt::emulator::fence();
}
inline void __threadfence_block() {
  mrt::emulator::fence();
}
// All that a device promises: that the caller is among the lanes.
inline unsigned __activemask() {
  return 1U << mrt::emulator::lane();
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const int from = mrt::emulator::first_of_segment(width) + (source & (width - 1));
  return mrt::emulator::value_of("__shfl_sync", mask, value, from);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = warpSize) {
  const int self = static_cast<int>(mrt::emulator::lane()), from = self ^ distance;
  const bool is_beyond = from >= mrt::emulator::first_of_segment(width) + width;
  return mrt::emulator::value_of("__shfl_xor_sync", mask, value, is_beyond ? self : from);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = warpSize) {
  const int self = static_cast<int>(mrt::emulator::lane()), from = self + static_cast<int>(distance);
  const bool is_beyond = from >= mrt::emulator::first_of_segment(width) + width;
  return mrt::emulator::value_of("__shfl_down_sync", mask, value, is_beyond ? self : from);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = warpSize) {
  const int self = static_cast<int>(mrt::emulator::lane()), from = self - static_cast<int>(distance);
  const bool is_before = from < mrt::emulator::first_of_segment(width);
  return mrt::emulator::value_of("__shfl_up_sync", mask, value, is_before ? self : from);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto values = mrt::emulator::meet("__ballot_sync", mask, predicate != 0);
  unsigned holding = 0;
  for (unsigned lane = 0; lane < warpSize; ++lane) holding |= static_cast<unsigned>(values.of[lane]) << lane;
  return holding;
}
inline int __any_sync(unsigned mask, int predicate) {
  const auto values = mrt::emulator::meet("__any_sync", mask, predicate != 0);
  for (const uint64_t value : values.of) {
    if (value != 0) return 1;
  }
  return 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  const auto values = mrt::emulator::meet("__all_sync", mask, predicate == 0);
  for (const uint64_t value : values.of) {
    if (value != 0) return 0;
  }
  return 1;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t word = mrt::emulator::to_word(value);
  const auto values = mrt::emulator::meet("__match_any_sync", mask, word);
  unsigned equal = 0;
  for (unsigned lane = 0; lane < warpSize; ++lane) {
    if ((values.present >> lane & 1) != 0 && values.of[lane] == word) equal |= 1U << lane;
  }
  return equal;
}

template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  static_assert(mrt::emulator::is_one_of<T, int, unsigned>);
  // unsigned, for sums wrap around
  return static_cast<T>(mrt::emulator::reduce("__reduce_add_sync", mask, static_cast<unsigned>(value),
                                              [](unsigned a, unsigned b) { return a + b; }));
}
template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  static_assert(mrt::emulator::is_one_of<T, int, unsigned>);
  return mrt::emulator::reduce("__reduce_max_sync", mask, value, [](T a, T b) { return a < b ? b : a; });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  static_assert(mrt::emulator::is_one_of<T, int, unsigned>);
  return mrt::emulator::reduce("__reduce_min_sync", mask, value, [](T a, T b) { return b < a ? b : a; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return mrt::emulator::reduce("__reduce_and_sync", mask, value, [](unsigned a, unsigned b) { return a & b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return mrt::emulator::reduce("__reduce_or_sync", mask, value, [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value) {
  return mrt::emulator::reduce("__reduce_xor_sync", mask, value, [](unsigned a, unsigned b) { return a ^ b; });
}

template <class T>
T atomicAdd(T* target, mrt::emulator::Same<T> value) {
  static_assert(mrt::emulator::is_atomic_integer<T> || mrt::emulator::is_one_of<T, float, double>);
  using Sum = std::conditional_t<std::is_same_v<T, int>, unsigned, T>;  // sums wrap around
  return mrt::emulator::atomically(
      target, [=](T before) { return static_cast<T>(static_cast<Sum>(before) + static_cast<Sum>(value)); });
}
template <class T>
T atomicMax(T* target, mrt::emulator::Same<T> value) {
  static_assert(mrt::emulator::is_atomic_integer<T> || std::is_same_v<T, long long>);
  return mrt::emulator::atomically(target, [=](T before) { return before < value ? value : before; });
}
template <class T>
T atomicMin(T* target, mrt::emulator::Same<T> value) {
  static_assert(mrt::emulator::is_atomic_integer<T> || std::is_same_v<T, long long>);
  return mrt::emulator::atomically(target, [=](T before) { return value < before ? value : before; });
}
template <class T>
T atomicOr(T* target, mrt::emulator::Same<T> value) {
  static_assert(mrt::emulator::is_atomic_integer<T>);
  return mrt::emulator::atomically(target, [=](T before) { return before | value; });
}
template <class T>
T atomicAnd(T* target, mrt::emulator::Same<T> value) {
  static_assert(mrt::emulator::is_atomic_integer<T>);
  return mrt::emulator::atomically(target, [=](T before) { return before & value; });
}
template <class T>
T atomicExch(T* target, mrt::emulator::Same<T> value) {
  static_assert(mrt::emulator::is_atomic_integer<T> || std::is_same_v<T, float>);
  return mrt::emulator::atomically(target, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* target, mrt::emulator::Same<T> expected, mrt::emulator::Same<T> value) {
  static_assert(mrt::emulator::is_atomic_integer<T> || std::is_same_v<T, unsigned short>);
  return mrt::emulator::atomically(target, [=](T before) { return before == expected ? value : before; });
}
