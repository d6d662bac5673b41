// Launches from the host: on the caller's device and stream, checked, never synchronised. Included by launch.cu files.
#pragma once

#include <string>
#include <utility>

#include "common/cuda.h"
#include "common/cuda_language.h"

namespace mrt {

// Errors become exceptions. `op` is the name of the public function, `doing` what failed.
inline void check_cuda(cudaError_t error, const char* op, const char* doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  throw CudaError(std::string(op) + ": " + doing + " failed: " + cudaGetErrorString(error));
}

// The tensors' device is current while it lives; afterwards the caller's again.
class DeviceGuard {
 public:
  DeviceGuard(const char* op, int device) {
    check_cuda(cudaGetDevice(&before_), op, "finding a CUDA device");
    check_cuda(cudaSetDevice(device), op, "choosing the CUDA device");
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

// The most shared memory that a block can have there, in bytes, declared arrays included.
inline size_t largest_shared(const char* op, int device) {
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), op,
             "asking for the shared memory of a block");
  return static_cast<size_t>(bytes);
}

inline int multiprocessors(const char* op, int device) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), op,
             "asking for the number of multiprocessors");
  return count;
}

struct LaunchShape {
  dim3 blocks, threads;
  size_t shared = 0;  // bytes of dynamic shared memory
  bool is_cooperative = false;
};

// Asks for as many blocks as are needed, on `stream`, whose device must be current. Returns before the kernel has run.
template <class... P, class... A>
void launch(const char* op, void (*kernel)(P...), const LaunchShape& shape, const CudaStream& stream,
            A&&... arguments) {
  if (shape.shared > 0) {  // without asking 48 KiB are the limit of dynamic and declared memory together
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared)), op,
        "asking for shared memory");
  }
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = shape.is_cooperative ? 1 : 0;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.blocks;
  config.blockDim = shape.threads;
  config.dynamicSmemBytes = shape.shared;
  config.stream = reinterpret_cast<cudaStream_t>(stream.address);
  config.attrs = &cooperative;
  config.numAttrs = shape.is_cooperative ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<A>(arguments)...), op, "launching a kernel");
  check_cuda(cudaGetLastError(), op, "launching a kernel");
}

}  // namespace mrt
