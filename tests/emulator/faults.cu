// Kernels with a planted fault each, and the same kernels without it: what the machine and the sanitizers must speak about.
//   faults NAME planted|mended [ORDER]       prints what a kernel left, or the sentence of the exception
#include <cstdlib>
#include <cstring>
#include <string>

#include "check.h"

namespace {

constexpr int THREADS = 64;

// What the block of the caller may write.
__device__ float* part(float* out) {
  return out + blockIdx.x * THREADS;
}

// `planted` is read at run time, so that no compiler removes what a fault breaks.
__global__ void missing_barrier(float* out, bool planted) {
  MRT_SHARED(float, s, THREADS);
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (!planted) __syncthreads();
  part(out)[threadIdx.x] = s[THREADS - 1 - threadIdx.x];
}

// A barrier before the shared memory is used again.
__global__ void missing_second_barrier(float* out, bool planted) {
  MRT_SHARED(float, s, THREADS);
  float sum = 0;
  for (int turn = 0; turn < 3; ++turn) {
    s[threadIdx.x] = static_cast<float>(threadIdx.x + turn);
    __syncthreads();
    sum += s[THREADS - 1 - threadIdx.x];
    if (!planted) __syncthreads();
  }
  part(out)[threadIdx.x] = sum;
}

__global__ void race_of_blocks(float* out, bool planted) {
  if (threadIdx.x != 0) return;
  if (planted) {
    *out += 1;
  } else {
    atomicAdd(out, 1.0F);
  }
}

__global__ void shared_read_after_shuffle(float* out, bool planted) {
  MRT_SHARED(float, s, THREADS);
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (planted) {
    __shfl_sync(ALL, 0, 0);  // all lanes have met, but a shuffle orders no memory
  } else {
    __syncwarp();
  }
  part(out)[threadIdx.x] = s[threadIdx.x ^ 1];
}

// A number handed from block to block without a fence.
__global__ void missing_fence(float* out, bool planted) {
  if (threadIdx.x != 0) return;
  auto* const tickets = reinterpret_cast<unsigned*>(out + 32);
  out[1 + blockIdx.x] = 1;
  if (!planted) __threadfence();
  if (atomicAdd(tickets, 1U) != gridDim.x - 1) return;
  if (!planted) __threadfence();
  for (unsigned i = 0; i < gridDim.x; ++i) out[0] += out[1 + i];
}

__global__ void missing_grid_barrier(float* out, bool planted) {
  const unsigned i = blockIdx.x * THREADS + threadIdx.x, size = gridDim.x * THREADS;
  out[i] = static_cast<float>(i);
  if (!planted) mrt::sync_grid();
  const float other = out[size - 1 - i];
  mrt::sync_grid();
  out[i] = other;
}

__global__ void dynamic_shared_overflow(float* out, bool planted) {
  float* const s = mrt::dynamic_shared<float>();  // THREADS values
  s[threadIdx.x + (planted ? 1 : 0)] = 1;
  __syncthreads();
  part(out)[threadIdx.x] = s[threadIdx.x];
}

__global__ void declared_shared_overflow(float* out, bool planted) {
  MRT_SHARED(float, s, THREADS);
  MRT_SHARED(float, next, THREADS);
  float* const p = s;  // through a pointer, for which no type tells the size
  next[threadIdx.x] = 0;
  p[threadIdx.x + (planted ? 1 : 0)] = 1;
  __syncthreads();
  part(out)[threadIdx.x] = p[threadIdx.x] + next[threadIdx.x];
}

__global__ void declared_index_out_of_range(float* out, bool planted) {
  MRT_SHARED(float, s, THREADS);
  s[threadIdx.x + (planted ? 1 : 0)] = 1;
  __syncthreads();
  part(out)[threadIdx.x] = s[threadIdx.x];
}

__global__ void global_overflow(float* out, bool planted) {
  part(out)[threadIdx.x + (planted ? THREADS : 0)] = 1;  // the second block writes beyond the end
}

__global__ void misaligned_vector(float* out, bool planted) {
  const float4 four = *reinterpret_cast<float4*>(out + (planted ? 1 : 4));
  if (threadIdx.x == 0) part(out)[0] = four.x;
}

__global__ void integer_overflow(float* out, bool planted) {
  const int large = 0x7fffff00 + static_cast<int>(threadIdx.x);
  part(out)[threadIdx.x] = static_cast<float>(large + (planted ? 0xff : 0x0f));
}

__global__ void divergent_barrier(float* out, bool planted) {
  if (planted && threadIdx.x % WARP >= 8) __shfl_sync(ALL, 1, 0);
  __syncthreads();
  part(out)[threadIdx.x] = 1;
}

__global__ void absent_lane(float* out, bool planted) {
  if (planted && threadIdx.x % WARP == 3) {
    __ballot_sync(ALL, 1);
  } else {
    __shfl_sync(ALL, 1, 0);
  }
  part(out)[threadIdx.x] = 1;
}

__global__ void read_of_an_exited_lane(float* out, bool planted) {
  if (planted && threadIdx.x % WARP == 5) return;
  part(out)[threadIdx.x] = __shfl_sync(ALL, 1.0F, 5);
}

__global__ void mask_without_the_caller(float* out, bool planted) {
  if (threadIdx.x != 0) return;
  __syncwarp(planted ? 2 : 1);
  part(out)[0] = 1;
}

__global__ void uninitialised_declared(float* out, bool planted) {
  MRT_SHARED(float, s, THREADS);
  if (!planted) s[threadIdx.x] = 1;
  part(out)[threadIdx.x] = s[threadIdx.x];
}

__global__ void uninitialised_dynamic(float* out, bool planted) {
  float* const s = mrt::dynamic_shared<float>();
  if (!planted) s[threadIdx.x] = 1;
  part(out)[threadIdx.x] = s[threadIdx.x];
}

__global__ void too_much_declared(float* out, bool planted) {
  MRT_SHARED(float, most, 48 * 256);
  most[threadIdx.x] = 1;
  if (planted) {
    MRT_SHARED(float, one_more, 1);
    one_more[0] = 1;
  }
  part(out)[threadIdx.x] = most[threadIdx.x];
}

__global__ void grid_barrier_without_cooperation(float* out, bool planted) {
  if (planted) mrt::sync_grid();
  part(out)[threadIdx.x] = 1;
}

struct Fault {
  const char* name;
  void (*kernel)(float*, bool);
  bool is_cooperative = false;
};
constexpr Fault FAULTS[] = {
    {"missing_barrier", missing_barrier},
    {"missing_second_barrier", missing_second_barrier},
    {"race_of_blocks", race_of_blocks},
    {"shared_read_after_shuffle", shared_read_after_shuffle},
    {"missing_fence", missing_fence},
    {"missing_grid_barrier", missing_grid_barrier, true},
    {"dynamic_shared_overflow", dynamic_shared_overflow},
    {"declared_shared_overflow", declared_shared_overflow},
    {"declared_index_out_of_range", declared_index_out_of_range},
    {"global_overflow", global_overflow},
    {"misaligned_vector", misaligned_vector},
    {"integer_overflow", integer_overflow},
    {"divergent_barrier", divergent_barrier},
    {"absent_lane", absent_lane},
    {"read_of_an_exited_lane", read_of_an_exited_lane},
    {"mask_without_the_caller", mask_without_the_caller},
    {"uninitialised_declared", uninitialised_declared},
    {"uninitialised_dynamic", uninitialised_dynamic},
    {"too_much_declared", too_much_declared},
    {"grid_barrier_without_cooperation", grid_barrier_without_cooperation},
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return 2;
  if (count > 3) mrt::emulator::set_order(arguments[3]);
  for (const Fault& fault : FAULTS) {
    if (std::strcmp(fault.name, arguments[1]) != 0) continue;
    constexpr unsigned BLOCKS = 2;
    Shared<float> out(BLOCKS * THREADS);
    try {
      run(fault.kernel, {dim3(BLOCKS), dim3(THREADS), THREADS * sizeof(float), fault.is_cooperative}, out.data(),
          std::strcmp(arguments[2], "planted") == 0);
      for (size_t i = 0; i < out.size(); ++i) std::printf("%g ", out[i]);
      std::printf("\n");
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
    }
    return 0;
  }
  std::printf("no fault is called %s\n", arguments[1]);
  return 2;
}
