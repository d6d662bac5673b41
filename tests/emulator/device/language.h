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

}  // namespace mrt
