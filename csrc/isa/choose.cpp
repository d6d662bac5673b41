// Chooses the instruction set once, and hands out its tables: every accessor <op>_kernels() ends here. MRTKERN_ISA caps the
// choice (portable, avx2, avx512, avx512_bf16), for tests; it never changes a selection.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "common/memory.h"
#include "isa/path.h"

namespace mrt {

namespace {

// Seconds per row of a product of bfloat16 panels, the least of several tries of a few microseconds.
double time_of(const Path& path) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t UNITS = 256, TRIES = 48;
  const Buffer zeros(UNITS * COLUMNS * sizeof(Unit));
  std::memset(zeros.data(), 0, zeros.size());
  const auto* const units = reinterpret_cast<const Unit*>(zeros.data());
  float out[PANEL * COLUMNS];
  auto least = Clock::duration::max();
  for (int64_t i = 0; i < TRIES; ++i) {
    const auto begin = Clock::now();
    path.tile.halves.multiply(units, 0, 1, units, UNITS, {out, COLUMNS, PANEL, COLUMNS, nullptr, false}, {});
    least = std::min(least, Clock::now() - begin);
  }
  return std::chrono::duration<double>(least).count() / path.tile.halves.lanes;
}

// All paths give the same bits, so the quicker one may serve: a Xeon of model 207 does its vdpbf16ps at half the rate of
// two fused multiply-adds, so the path without it is the quicker one there; on a Zen 4 it is the other.
const Path* quicker(const Path* first, const Path* second) {
  return time_of(*second) < time_of(*first) ? second : first;
}

const Path* choose() {
  const Path* all[MOST_PATHS + 1];
  available_paths(all);
  const char* cap = std::getenv("MRTKERN_ISA");
  if (cap == nullptr || *cap == '\0')
    return std::strcmp(all[0]->name, "avx512_bf16") == 0 ? quicker(all[0], all[1]) : all[0];
  bool is_allowed = false;  // from the cap's own place in the order downwards
  for (const char* name : {"avx512_bf16", "avx512", "avx2", "portable"}) {
    is_allowed = is_allowed || std::strcmp(cap, name) == 0;
    for (const Path** path = all; is_allowed && *path != nullptr; ++path)
      if (std::strcmp((*path)->name, name) == 0) return *path;
  }
  throw std::invalid_argument(std::string("MRTKERN_ISA must be avx512_bf16, avx512, avx2 or portable, got '") + cap +
                              "'");
}

}  // namespace

void available_paths(const Path** all) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
    if (__builtin_cpu_supports("avx512bf16")) *all++ = &avx512_bf16_path;
    *all++ = &avx512_path;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) *all++ = &avx2_path;
#endif
  *all++ = &portable_path;
  *all = nullptr;
}

const Path& path_in_use() {
  static const Path* const chosen = choose();
  return *chosen;
}

const TileKernels& tile_kernels() {
  return path_in_use().tile;
}
const CrossEntropyKernels& cross_entropy_kernels() {
  return path_in_use().cross_entropy;
}
const FacilityLocationKernels& facility_location_kernels() {
  return path_in_use().facility_location;
}
const NeighborsKernels& neighbors_kernels() {
  return path_in_use().neighbors;
}
const SimilarityKernels& similarity_kernels() {
  return path_in_use().similarity;
}

}  // namespace mrt
