// The host's side: limits of every device there is, errors as sentences, the current device restored.
#include <string>

#include "check.h"

namespace {

constexpr size_t KIB = 1024;

__global__ void touch(int* out) {
  int& mine = mrt::dynamic_shared<int>()[threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)];
  mine = 1;
  atomicAdd(out, mine);
}

__global__ void take(int* out, int8_t small, double large, float4 four) {
  *out = static_cast<int>(small + large + four.x + four.w);
}

// Bytes of shared memory that a block can have, by compute capability: NVIDIA's programming guide, technical specifications.
size_t documented_shared(int device) {
  int major = 0, minor = 0;
  mrt::check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "test", "major");
  mrt::check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "test", "minor");
  if (major == 9 || major == 10) return 227 * KIB;
  return (major == 8 && minor % 7 == 0 ? 163 : 99) * KIB;
}

// The sentence of a launch, empty if it runs.
std::string sentence(const mrt::LaunchShape& shape) {
  Shared<int> out(1);
  try {
    run(touch, shape, out.data());
  } catch (const mrt::CudaError& error) {
    return error.what();
  }
  const long long threads = static_cast<long long>(shape.threads.x) * shape.threads.y * shape.threads.z;
  expect("every thread runs once", out[0] == threads * shape.blocks.x * shape.blocks.y * shape.blocks.z);
  return "";
}

void expect_refused(const char* claim, const mrt::LaunchShape& shape, const char* reason) {
  expect(claim, sentence(shape) == std::string("test: ") + reason);
  expect("an error is reported once", cudaGetLastError() == cudaSuccess);
}

void test_limits(int device) {
  const mrt::DeviceGuard guard("test", device);
  const size_t most = mrt::largest_shared("test", device);
  expect("shared memory of a block", most == documented_shared(device), device);
  const dim3 one(1), warp(WARP);
  expect("all shared memory", sentence({one, warp, most}).empty(), device);
  expect("shared memory without asking", sentence({one, warp, 48 * KIB}).empty(), device);
  // once, for a fiber takes milliseconds under ThreadSanitizer
  if (device == 0) expect("1024 threads", sentence({one, dim3(32, 32), 4 * KIB}).empty());
  expect_refused("too much shared memory", {one, warp, most + 1}, "asking for shared memory failed: invalid argument");
  const char* const configuration = "launching a kernel failed: invalid configuration argument";
  expect_refused("too many threads", {one, dim3(1025), 8 * KIB}, configuration);
  expect_refused("too many threads in all", {one, dim3(32, 33), 8 * KIB}, configuration);
  expect_refused("too many threads in depth", {one, dim3(1, 1, 65), 8 * KIB}, configuration);
  expect_refused("no threads", {one, dim3(0), KIB}, configuration);
  expect_refused("no blocks", {dim3(0), warp, KIB}, configuration);
  expect_refused("too many blocks in height", {dim3(1, 65536), warp, KIB}, configuration);
  expect_refused("too many blocks in depth", {dim3(1, 1, 65536), warp, KIB}, configuration);
  const auto blocks = static_cast<unsigned>(mrt::multiprocessors("test", device));
  expect("a block on each multiprocessor", sentence({dim3(blocks), warp, most, true}).empty(), device);
  expect_refused("one cooperative block too many", {dim3(blocks + 1), warp, most, true},
                 "launching a kernel failed: too many blocks in cooperative launch");
}

void test_shared_memory_must_be_asked_for() {
  Shared<int> out(1);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(WARP);
  config.dynamicSmemBytes = 48 * KIB + 1;
  expect("48 KiB are the most without asking",
         cudaLaunchKernelEx(&config, take, out.data(), int8_t{1}, 1.0, float4{}) == cudaErrorInvalidValue);
  expect("the error is remembered", cudaGetLastError() == cudaErrorInvalidValue);
}

// Threads bound it, then shared memory.
void test_occupancy() {
  int crowded = 0, spacious = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&crowded, touch, 512, size_t{4 * KIB});
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&spacious, touch, 512, size_t{48 * KIB});
  expect("blocks of a multiprocessor by threads", crowded == 3 || crowded == 4, crowded);
  expect("blocks of a multiprocessor by shared memory", 1 <= spacious && spacious <= crowded, spacious);
}

void test_parameters() {
  Shared<int> out(1);
  run(take, {dim3(1), dim3(1)}, out.data(), 3, 4, make_float4(5, 0, 0, 6));  // converted to the kernel's types
  expect("parameters", out[0] == 18);
}

void test_devices() {
  const int count = mrt::cuda_device_count();
  expect("there is a device", count > 0);
  expect("architectures are ascending", mrt::cuda_archs().front() <= mrt::cuda_archs().back());
  for (int device = 0; device < count; ++device) test_limits(device);
  int current = -1;
  cudaGetDevice(&current);
  expect("the caller's device is restored", current == 0);
  std::string said;
  try {
    const mrt::DeviceGuard guard("test", count);
  } catch (const mrt::CudaError& error) {
    said = error.what();
  }
  expect("a device that is not there", said == "test: choosing the CUDA device failed: invalid device ordinal");
}

}  // namespace

void test_launches() {
  test_parameters();
  test_shared_memory_must_be_asked_for();
  test_occupancy();
  test_devices();
}
