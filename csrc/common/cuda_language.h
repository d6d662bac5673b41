// The language of the kernels: included by every .cuh. nvcc speaks it with what is added here; another compiler needs a
// machine that was included first and defines MRT_SHARED, dynamic_shared and sync_grid, as the tests have one.
//
//   MRT_SHARED(float, partial, 32);                   an array of shared memory of the block, uninitialised
//   float* rows = mrt::dynamic_shared<float>();       the shared memory that the launch asked for, aligned to 16 bytes
//   mrt::sync_grid();                                 barrier of a cooperative launch
//   mrt::multiply_bytes<int8_t, uint8_t>(c, a, b);    c [16, 8] += a [16, 32] b [8, 32]^T by the 32 threads of a warp, exact
//                                                     modulo 2^32; who holds what: PTX ISA, mma.m16n8k32
//
// Everything else is written as in CUDA C++. Where results must agree bit for bit the roundings are written out (__fmul_rn,
// __dadd_rn, …): nvcc fuses what g++ was told not to.
#pragma once

#if defined(__CUDACC__)

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

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

template <class A, class B>
__device__ __forceinline__ void multiply_bytes(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  constexpr bool IS_A_SIGNED = std::is_signed_v<A>, IS_B_SIGNED = std::is_signed_v<B>;
  static_assert(sizeof(A) == 1 && sizeof(B) == 1);
  if constexpr (IS_A_SIGNED && IS_B_SIGNED) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else if constexpr (IS_A_SIGNED) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else if constexpr (IS_B_SIGNED) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

}  // namespace mrt

#elif !defined(MRT_SHARED)
#error "CUDA C++ is compiled by nvcc"
#endif
