// The machine that runs CUDA C++ kernels on the CPU, for their tests: one fiber per CUDA thread, one block at a time, all
// blocks at once for a cooperative launch. A fiber runs until it waits, so what a kernel computes is the same on every run.
//
// Found by it, together with the sanitizers:
//   accesses out of bounds, shared memory included     AddressSanitizer
//   misaligned vectors, signed overflow                UndefinedBehaviorSanitizer
//   races between threads and between blocks           ThreadSanitizer: barriers order memory, shuffles and atomics do not
//   divergent barriers, absent lanes, wrong masks      a Fault that says who waits where
//   shared memory read before it was written           it holds 0xff, which is NaN
//   dependence on the order of threads or blocks       forward, reverse and random orders
// Not modelled: lock step of a warp, memory order weaker than the host's, registers, tensor cores, asynchronous copies, speed.
// A fence orders a thread with all that fenced before it, so races hidden behind a needless fence are not seen, and a
// thread that spins until another one writes spins for ever.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "device/types.h"

// Thread-local and plain, so that kernels read them as they do on a device. The machine sets them before a fiber runs on.
extern __thread uint3 threadIdx, blockIdx;
extern __thread uint3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace mrt::emulator {

constexpr int WARP = 32;
constexpr unsigned LARGEST_BLOCK = 1024;
constexpr size_t STATIC_SHARED = 48 << 10;  // bytes of declared arrays that a block may have

// What a kernel did that a device would answer with a hang, a trap or wrong numbers. Thrown out of the launch.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What barriers tell: how many threads there are and for how many the predicate held.
struct Count {
  int threads = 0, holding = 0;
};

// The values that the lanes of a warp brought to a meeting. Lanes in the mask that have exited brought none.
struct Values {
  unsigned present = 0;
  uint64_t of[WARP] = {};
};

// Waits for all threads of the block that have not exited.
Count sync_block(bool predicate);

// Waits for all threads of a cooperative launch.
void sync_grid();

// Waits until every lane of the mask that has not exited calls the same `primitive` with the same mask.
// Orders memory only where the primitive does: among CUDA's warp primitives that is __syncwarp alone.
Values meet(const char* primitive, unsigned mask, uint64_t value, bool orders_memory = false);

// Orders the memory of this thread with that of the threads that fenced before it.
void fence();

unsigned lane();

// Ends the launch with a Fault that names the thread.
[[noreturn]] void fail(const std::string& what);

// An array of shared memory, the same for every thread of a block that names the same declaration.
void* shared_array(const void* declaration, size_t bytes, size_t alignment);
void* dynamic_shared_bytes();

struct Grid {
  dim3 blocks, threads;
  size_t dynamic_shared = 0;
  bool is_cooperative = false;
};

// Runs `kernel` for every thread of a grid that fits the device; `shared_limit`: bytes that a block may have in all.
void run(const Grid& grid, size_t shared_limit, const std::function<void()>& kernel);

// "forward", "reverse" or "random:SEED": in which order blocks and threads run from now on, in the whole process.
void set_order(const std::string& order);

// A declaration of shared memory: the type of a lambda expression is its own for every declaration and instance.
template <class Array, class Declaration>
Array& shared(Declaration) {
  static const char declaration = 0;
  return *static_cast<Array*>(shared_array(&declaration, sizeof(Array), alignof(Array)));
}

}  // namespace mrt::emulator
