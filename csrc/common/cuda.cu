// Questions about devices, answered by CUDA's runtime.
#include "common/cuda.h"

#include "common/launch.h"

namespace mrt {

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver or no device: remembered otherwise, and reported by the next launch
  return 0;
}

std::vector<int> cuda_archs() {
  std::vector<int> archs{__CUDA_ARCH_LIST__};
  for (int& arch : archs) arch /= 10;
  return archs;
}

int cuda_runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

}  // namespace mrt
