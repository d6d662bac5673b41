// Kernels for the report on machine code: one that keeps its rules and one for each rule that breaks it.
#include "common/cuda_language.h"

// Sixteen bytes at a time.
__global__ void good(const float4* in, float4* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float4 four = __ldg(in + i);
  out[i] = make_float4(four.w, four.z, four.y, four.x);
}

// An array that is indexed by data has no place but local memory.
__global__ void local_memory(const float4* in, const int* which, float* out) {
  float numbers[32];
  for (int i = 0; i < 8; ++i) reinterpret_cast<float4*>(numbers)[i] = __ldg(in + i);
  for (int i = 0; i < 64; ++i) numbers[which[i] & 31] += 1.0F;
  out[threadIdx.x] = numbers[threadIdx.x & 31];
}

__global__ void narrow_loads(const unsigned short* in, unsigned short* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = __ldg(in + i);
}
