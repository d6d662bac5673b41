// Facility location per group, from raw features: the contract between the binding, the greedy loop and the kernels.
// Definitions: mrtkern/ops/facility_location/__init__.py and reference.py; all results equal the
// reference's, bit for bit.
#pragma once

#include <cstdint>

#include "tile/features.h"

namespace mrt {

enum class Fill { index, coverage, random, none };

constexpr int64_t LARGEST_GROUP = 4096;  // gains of a group fit int32, its row numbers uint16
constexpr int64_t COUNTED_ROWS =
    64;                       // up to here the k first of a group are found by counting, beyond by partial sorting
constexpr int STEPS = 32767;  // fixed-point value of the largest pair
constexpr uint64_t KEPT = 0, CHANCE = 1, TRIED = 4;  // numbers of the draws, as in mrtkern/_random.py
constexpr int RANDOM_DRAWS = 8;                      // uniform draws whose mean value is the zero of `skill`

struct SelectionProblem {
  Features x;
  int64_t num_groups;
  const int64_t* offsets;    // [B + 1]
  const int64_t* k;          // [B], at most the rows of the group
  const float* weight;       // [T] or null: ones
  const float* quality;      // [T] or null: ones
  const float* bonus;        // [T] or null: zeros
  const int64_t* given;      // [sum of k] row numbers to evaluate in this order, or null: greedy
  const int64_t* group_key;  // [B]
  Metric metric;             // shifted_cosine or clamped_cosine
  double radius;             // of the lattice
  Fill fill;
  uint64_t seed;
  int64_t first_row;  // added to every row number that is returned, subtracted from given ones
};

struct SelectionResult {
  int64_t *ids, *gains;  // [sum of k], packed by k; with Fill::none a group may leave its last places unused
  float* share;          // likewise
  int64_t* kept;         // [B] ids written
  int64_t *value, *bound, *random, *effective;  // [B]
  int64_t* owner;                               // [T]
};

// Returns the first row (of x) that holds NaN or infinity, or -1. Throws Interrupted, OutOfMemory.
int64_t select_groups(const SelectionProblem& problem, const SelectionResult& result, int threads);

// One group's pairs while it is worked on. t and plain rows are `stride` values apart, candidate-major, zero beyond N.
struct PairTable {
  int64_t N, stride;
  uint16_t* t;
};

// How products become fixed point: t[j][i] = min(STEPS, rint(max(0, base + product) * (unit_i * quality_j))).
struct PairRule {
  int32_t base;
  const float* unit;     // [M, padded to panels] zero beyond the rows to cover
  const float* quality;  // [N]
  int64_t N;             // candidates
};

}  // namespace mrt
