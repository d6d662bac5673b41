// The tests of the kernels' language: each fills memory by a kernel and says what a plain loop would have put there.
// Built by g++ against the emulator, and by nvcc for a device: the expectations are the same.
#pragma once

#include <cstdio>
#include <vector>

#include "common/launch.h"

constexpr unsigned ALL = 0xffffffff;
constexpr int WARP = 32;
inline const mrt::CudaStream STREAM{0, 0};

// Memory that both sides see.
template <class T>
class Shared {
 public:
  explicit Shared(size_t size, T value = T{}) : size_(size) {
    mrt::check_cuda(cudaMallocManaged(&data_, size * sizeof(T)), "test", "cudaMallocManaged");
    for (size_t i = 0; i < size; ++i) data_[i] = value;
  }
  ~Shared() { cudaFree(data_); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  size_t size_;
};

inline int failures = 0;

inline void expect(const char* claim, bool holds, long long place = -1) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s at %lld\n", claim, place);
}

template <class T, class Wanted>
void expect_all(const char* claim, const Shared<T>& got, Wanted wanted) {
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == static_cast<T>(wanted(i))) continue;
    expect(claim, false, static_cast<long long>(i));
    return;
  }
}

// Runs a kernel to its end.
template <class... P, class... A>
void run(void (*kernel)(P...), const mrt::LaunchShape& shape, A&&... arguments) {
  mrt::launch("test", kernel, shape, STREAM, std::forward<A>(arguments)...);
  mrt::check_cuda(cudaDeviceSynchronize(), "test", "running a kernel");
}

void test_warps();
void test_blocks();
void test_numbers();
void test_launches();
