// Devices, their limits, and launches that respect them.
#include "device/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <map>

namespace mrt::emulator {

namespace {

// From the table of technical specifications per compute capability in NVIDIA's programming guide.
struct Device {
  int major, minor;
  size_t shared_per_block, shared_per_multiprocessor;
  int threads_per_multiprocessor, blocks_per_multiprocessor;
};
constexpr size_t KIB = 1024;
constexpr Device DEVICES[] = {
    {12, 0, 99 * KIB, 100 * KIB, 1536, 24},
    {8, 0, 163 * KIB, 164 * KIB, 2048, 32},
    {9, 0, 227 * KIB, 228 * KIB, 2048, 32},
    {10, 0, 227 * KIB, 228 * KIB, 2048, 32},
};
constexpr int NUM_DEVICES = sizeof DEVICES / sizeof DEVICES[0];
constexpr int MULTIPROCESSORS = 2;           // few, so that a grid as large as the device is soon run
constexpr size_t RESERVED = KIB;             // shared memory that the system takes of every block
constexpr size_t WITHOUT_ASKING = 48 * KIB;  // declared arrays included
constexpr unsigned LARGEST_GRID_X = 0x7fffffff, LARGEST_GRID_YZ = 65535, LARGEST_BLOCK_Z = 64;

thread_local int current = 0;
thread_local cudaError_t last = cudaSuccess;
thread_local std::map<const void*, size_t> allowed;  // dynamic shared memory that a kernel asked for

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

bool is_between(unsigned value, unsigned most) {
  return 1 <= value && value <= most;
}

cudaError_t check(const Device& device, const cudaLaunchConfig_t& config, const void* kernel, bool is_cooperative) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const bool fits = is_between(grid.x, LARGEST_GRID_X) && is_between(grid.y, LARGEST_GRID_YZ) &&
                    is_between(grid.z, LARGEST_GRID_YZ) && is_between(block.x, LARGEST_BLOCK) &&
                    is_between(block.y, LARGEST_BLOCK) && is_between(block.z, LARGEST_BLOCK_Z) &&
                    block.x * block.y * block.z <= LARGEST_BLOCK;
  if (!fits) return cudaErrorInvalidConfiguration;
  const auto asked = allowed.find(kernel);
  const size_t most = asked == allowed.end() ? WITHOUT_ASKING : std::max(asked->second, WITHOUT_ASKING);
  if (config.dynamicSmemBytes > std::min(most, device.shared_per_block)) return cudaErrorInvalidValue;
  if (is_cooperative) {
    int blocks = 0;
    blocks_per_multiprocessor(&blocks, static_cast<int>(block.x * block.y * block.z), config.dynamicSmemBytes);
    const uint64_t wanted = uint64_t{grid.x} * grid.y * grid.z;
    if (wanted > static_cast<uint64_t>(blocks) * MULTIPROCESSORS) return cudaErrorCooperativeLaunchTooLarge;
  }
  return cudaSuccess;
}

}  // namespace

// As long as asked for, so that AddressSanitizer guards its end.
void* allocate(size_t bytes) {
  constexpr size_t ALIGNMENT = 256;
  void* memory = nullptr;
  if (posix_memalign(&memory, ALIGNMENT, std::max<size_t>(bytes, 1)) != 0) throw std::bad_alloc();
  return memory;
}

cudaError_t allow_shared(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > DEVICES[current].shared_per_block) {
    return remember(cudaErrorInvalidValue);
  }
  allowed[kernel] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

cudaError_t blocks_per_multiprocessor(int* blocks, int threads, size_t dynamic_shared) {
  const Device& device = DEVICES[current];
  const int whole_warps = (threads + WARP - 1) / WARP * WARP;
  const auto by_shared = static_cast<int>(device.shared_per_multiprocessor / (dynamic_shared + RESERVED));
  *blocks = std::min({device.threads_per_multiprocessor / whole_warps, by_shared, device.blocks_per_multiprocessor});
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body) {
  bool is_cooperative = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) is_cooperative |= config.attrs[i].val.cooperative != 0;
  const Device& device = DEVICES[current];
  const cudaError_t error = check(device, config, kernel, is_cooperative);
  if (error != cudaSuccess) return remember(error);
  const size_t limit = allowed.count(kernel) == 0 ? WITHOUT_ASKING : device.shared_per_block;
  run({config.gridDim, config.blockDim, config.dynamicSmemBytes, is_cooperative}, limit, body);
  return cudaSuccess;
}

}  // namespace mrt::emulator

using namespace mrt::emulator;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
  }
  return "unknown error";
}

cudaError_t cudaGetLastError() {
  return std::exchange(last, cudaSuccess);
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = NUM_DEVICES;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= NUM_DEVICES) return remember(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= NUM_DEVICES) return remember(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = MULTIPROCESSORS;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = DEVICES[device].major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = DEVICES[device].minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(DEVICES[device].shared_per_block);
      return cudaSuccess;
  }
  return remember(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  std::free(address);
  return cudaSuccess;
}
