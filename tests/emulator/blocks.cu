// Indices, shared memory, barriers of a block and of a grid, atomics.
#include "check.h"

namespace {

__global__ void number(unsigned* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned size = blockDim.x * blockDim.y * blockDim.z;
  atomicAdd(out + block * size + thread, 1U + (threadIdx.z << 8) + (blockIdx.z << 16));
}

void test_indices() {
  const dim3 blocks(3, 2, 2), threads(5, 3, 2);
  Shared<unsigned> out(12 * 30);
  run(number, {blocks, threads}, out.data());
  expect_all("indices", out, [](size_t i) { return 1 + (i % 30 / 15 << 8) + (i / 30 / 6 << 16); });
}

// Turns a block's numbers around through a declared array, then through the launch's, then through declared vectors.
__global__ void turn_around(int* data) {
  MRT_SHARED(int, declared, 96);
  MRT_SHARED(int4, vectors, 24);
  int* const dynamic = mrt::dynamic_shared<int>();
  const unsigned i = threadIdx.x, last = blockDim.x - 1;
  int* const mine = data + blockIdx.x * blockDim.x;
  declared[i] = mine[i];
  __syncthreads();
  dynamic[i] = declared[last - i];
  __syncthreads();
  reinterpret_cast<int*>(vectors)[i] = dynamic[last - i];
  __syncthreads();
  if (i < 24) {
    const int4 four = vectors[23 - i];
    reinterpret_cast<int4*>(mine)[i] = make_int4(four.w, four.z, four.y, four.x);
  }
}

void test_shared_memory() {
  Shared<int> data(4 * 96);
  for (int i = 0; i < 4 * 96; ++i) data[i] = i;
  run(turn_around, {dim3(4), dim3(96), 96 * sizeof(int)}, data.data());
  expect_all("shared memory", data, [](size_t i) { return i / 96 * 96 + 95 - i % 96; });
}

// Every thread hands a number to its neighbour, as often as there are threads: a lost barrier loses numbers.
__global__ void pass_on(int* out) {
  MRT_SHARED(int, places, 64);
  int mine = static_cast<int>(threadIdx.x);
  for (unsigned turn = 0; turn < blockDim.x + 1; ++turn) {
    places[(threadIdx.x + 1) % blockDim.x] = mine;
    __syncthreads();
    mine = places[threadIdx.x];
    __syncthreads();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = mine;
}

// The last 16 threads leave before the barriers, as a device lets them.
__global__ void count(int* out) {
  if (threadIdx.x >= blockDim.x - 16) return;
  int* mine = out + threadIdx.x * 5;
  mine[0] = __syncthreads_count(threadIdx.x % 3 == 0);
  mine[1] = __syncthreads_and(threadIdx.x < 48);
  mine[2] = __syncthreads_and(threadIdx.x < 47);
  mine[3] = __syncthreads_or(threadIdx.x == 40);
  mine[4] = __syncthreads_or(threadIdx.x == 50);
}

void test_barriers() {
  Shared<int> out(2 * 64);
  run(pass_on, {dim3(2), dim3(64)}, out.data());
  expect_all("barriers", out, [](size_t i) { return (i % 64 + 63) % 64; });
  Shared<int> counts(48 * 5, -1);
  run(count, {dim3(1), dim3(64)}, counts.data());
  const int wanted[] = {16, 1, 0, 1, 0};
  expect_all("counting barriers", counts, [&](size_t i) { return wanted[i % 5]; });
}

// Prefix sums over all blocks by doubling: the barrier of the grid between any two steps.
__global__ void scan(unsigned* a, unsigned* b) {
  const unsigned size = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  for (unsigned step = 1; step < size; step *= 2) {
    b[i] = a[i] + (i >= step ? a[i - step] : 0);
    mrt::sync_grid();
    a[i] = b[i];
    mrt::sync_grid();
  }
}

void test_grid_barrier() {
  Shared<unsigned> a(4 * 32, 1), b(4 * 32);
  run(scan, {dim3(4), dim3(32), 0, true}, a.data(), b.data());
  expect_all("barrier of the grid", a, [](size_t i) { return i + 1; });
}

// The block that counts itself last adds up what all have left.
__global__ void last_block(unsigned* parts, unsigned* arrived, unsigned* sum) {
  MRT_SHARED(bool, is_last, 1);
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = blockIdx.x + 1;
    __threadfence();
    is_last[0] = atomicAdd(arrived, 1U) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last[0] || threadIdx.x != 0) return;
  __threadfence();
  for (unsigned i = 0; i < gridDim.x; ++i) *sum += parts[i];
}

void test_fences() {
  Shared<unsigned> parts(8), arrived(1), sum(1);
  run(last_block, {dim3(8), dim3(32)}, parts.data(), arrived.data(), sum.data());
  expect("the last block sees all", sum[0] == 36);
}

struct Totals {
  int int_sum, int_max, int_min, caught, tickets[256];
  unsigned unsigned_sum, unsigned_max, every, some, exchanged, returned;
  unsigned long long long_sum, long_max, long_min;
  long long signed_max, signed_min;
  float float_sum;
  double double_sum;
};

__global__ void gather(Totals* t) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), odd = i * 2 - 255;
  const auto u = static_cast<unsigned>(i);
  atomicAdd(&t->tickets[atomicAdd(&t->int_sum, 1)], 1);  // every number comes back once
  atomicMax(&t->int_max, odd);
  atomicMin(&t->int_min, odd);
  atomicAdd(&t->unsigned_sum, u << 24);
  atomicMax(&t->unsigned_max, u);
  atomicAnd(&t->every, ~(1U << i % 32 / 2));
  atomicOr(&t->some, 1U << i % 32 / 2);
  atomicAdd(&t->returned, atomicExch(&t->exchanged, u));
  atomicAdd(&t->long_sum, 1ULL << 33);
  atomicMax(&t->long_max, 1ULL << i % 64);
  atomicMin(&t->long_min, 1ULL << i % 64);
  atomicMax(&t->signed_max, -1LL - i);
  atomicMin(&t->signed_min, -1LL - i);
  atomicAdd(&t->float_sum, 0.5F);
  atomicAdd(&t->double_sum, 0.25);
  for (int seen = 0;;) {  // a sum by comparing and swapping
    const int before = atomicCAS(&t->caught, seen, seen + odd);
    if (before == seen) break;
    seen = before;
  }
}

void test_atomics() {
  Shared<Totals> totals(1);
  Totals& t = totals[0];
  t.every = ALL;
  t.long_min = ~0ULL;
  t.signed_max = -1000;
  t.exchanged = 9;
  run(gather, {dim3(4), dim3(64)}, totals.data());
  expect("atomicAdd of int", t.int_sum == 256 && t.caught == 0);
  for (const int times : t.tickets) expect("atomicAdd returns what was there", times == 1);
  expect("atomicMax and atomicMin of int", t.int_max == 255 && t.int_min == -255);
  expect("atomics of unsigned", t.unsigned_sum == 255U * 128 << 24 && t.unsigned_max == 255);
  expect("atomicAnd and atomicOr", t.every == 0xffff0000 && t.some == 0x0000ffff);
  expect("atomicExch", t.exchanged + t.returned == 9 + 255 * 128);
  expect("atomics of unsigned long long", t.long_sum == 1ULL << 41 && t.long_max == 1ULL << 63 && t.long_min == 1);
  expect("atomics of long long", t.signed_max == -1 && t.signed_min == -256);
  expect("atomics of floats", t.float_sum == 128 && t.double_sum == 64);
}

}  // namespace

void test_blocks() {
  test_indices();
  test_shared_memory();
  test_barriers();
  test_grid_barrier();
  test_fences();
  test_atomics();
}
