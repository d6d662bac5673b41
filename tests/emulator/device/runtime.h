// The part of CUDA's runtime that the host code calls, with the limits of real devices: a launch that none of them would
// take fails here with the same error. Emulated devices, by index: 0 sm_120, whose blocks have the least shared memory,
// 1 sm_80, 2 sm_90, 3 sm_100. Memory is the host's and everything is finished when a call returns.
#pragma once

#include <tuple>
#include <utility>

#include "device/machine.h"

#define __CUDA_ARCH_LIST__ 800, 900, 1000, 1200

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    int cooperative;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace mrt::emulator {

void* allocate(size_t bytes);
cudaError_t allow_shared(const void* kernel, int bytes);
cudaError_t blocks_per_multiprocessor(int* blocks, int threads, size_t dynamic_shared);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body);

}  // namespace mrt::emulator

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaFree(void* address);

template <class T>
cudaError_t cudaMallocManaged(T** address, size_t bytes) {
  *address = static_cast<T*>(mrt::emulator::allocate(bytes));
  return cudaSuccess;
}

template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int value) {
  return mrt::emulator::allow_shared(reinterpret_cast<const void*>(kernel), value);
}

// Of threads and dynamic shared memory alone: registers and declared arrays are not known here.
template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(P...), int threads, size_t shared) {
  return mrt::emulator::blocks_per_multiprocessor(blocks, threads, shared);
}

// Arguments become the kernel's parameters once, as in a real launch; every thread gets a copy.
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  const std::tuple<P...> parameters(std::forward<A>(arguments)...);
  return mrt::emulator::launch(*config, reinterpret_cast<const void*>(kernel), [&] { std::apply(kernel, parameters); });
}
