// The language of the kernels: included by every .cuh. nvcc speaks it with what is added here; another compiler needs a
// machine that was included first and defines MRT_SHARED, dynamic_shared and sync_grid, as the tests have one.
//
//   MRT_SHARED(float, partial, 32);                   an array of shared memory of the block, uninitialised
//   float* rows = mrt::dynamic_shared<float>();       the shared memory that the launch asked for, aligned to 16 bytes
//   mrt::sync_grid();                                 barrier of a cooperative launch
//
// Everything else is written as in CUDA C++. Where results must agree bit for bit the roundings are written out (__fmul_rn,
// __dadd_rn, …): nvcc fuses what g++ was told not to.
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

#elif !defined(MRT_SHARED)
#error "CUDA C++ is compiled by nvcc"
#endif
