// Random numbers by counting, as mrtkern/_random.py defines them: a hash of (seed, draw, group key, position), no state.
//
// Internal linkage: what one instruction set compiled of it must not be merged with what another did.
#pragma once

#include <cstdint>

namespace mrt {
namespace {

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio, the step of SplitMix64

constexpr uint64_t mix(uint64_t h) {
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
  return h ^ (h >> 31);
}

constexpr uint64_t draw_stream(uint64_t seed, uint64_t draw, uint64_t group_key) {
  return mix(mix(seed + (draw + 1) * GOLDEN) ^ mix(group_key));
}

constexpr uint64_t draw_key(uint64_t stream, int64_t position) {
  return mix(stream + static_cast<uint64_t>(position + 1) * GOLDEN);
}

}  // namespace
}  // namespace mrt
