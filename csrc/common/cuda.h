// What the binding of CUDA kernels needs to know, without CUDA's headers.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace mrt {

// Where to launch: the device of the tensors and the address of the caller's current stream on it. Never the default
// stream unless it is the current one; nothing waits for it.
struct CudaStream {
  int device;
  uintptr_t address;
};

// A sentence that begins with the operation's name.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Devices that this process can use: none without a driver, and that is no error.
int cuda_device_count();

// Compute capabilities that the kernels were compiled for, times ten, ascending: 80 for sm_80.
std::vector<int> cuda_archs();

// Of CUDA's runtime that is linked in, 1000 * major + 10 * minor.
int cuda_runtime_version();

}  // namespace mrt
