// The language of the kernels: included by every .cuh, and the one place that knows whether nvcc or the emulator compiles it.
//
//   MRT_SHARED(float, partial, 32);                   an array of shared memory of the block, uninitialised
//   float* rows = mrt::dynamic_shared<float>();       the shared memory that the launch asked for, aligned to 16 bytes
//   mrt::sync_grid();                                 barrier of a cooperative launch
//
// Everything else is written as in CUDA C++; emulator/ says which part of it exists on the CPU. Where results must agree bit
// for bit the roundings are written out (__fmul_rn, __dadd_rn, …): nvcc fuses what g++ was told not to.
#pragma once

#if defined(__CUDACC__)

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define MRT_SHARED(type, name, count) __shared__ type name[count]

namespace mrt {

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char mrt_dynamic_shared[];
  return reinterpret_cast<T*>(mrt_dynamic_shared);
}

__device__ __forceinline__ void sync_grid() {
  cooperative_groups::this_grid().sync();
}

}  // namespace mrt

#else

#include "emulator/arithmetic.h"
#include "emulator/primitives.h"
#include "emulator/runtime.h"

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

#endif
