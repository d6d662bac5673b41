// Facility location per group, from raw features: the contract between the binding, the greedy loop and the kernels.
// Definitions: mrtkern/ops/facility_location/__init__.py and reference.py; all results equal the
// reference's, bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "tile/features.h"

namespace mrt {

enum class Fill { index, coverage, random, none };

constexpr int64_t LARGEST_GROUP = 4096;  // gains of a group fit int32, its row numbers uint16
constexpr int64_t COUNTED_ROWS =
    64;                       // up to here the k first of a group are found by counting, beyond by partial sorting
constexpr int STEPS = 32767;  // fixed-point value of the largest pair
constexpr uint64_t KEPT = 0, CHANCE = 1;  // numbers of the draws, as in mrtkern/_random.py
constexpr int RANDOM_DRAWS = 8;           // uniform draws whose mean value is the zero of `skill`

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

// What to do with a pair that can still matter: candidate j covers row i by t.
using PairKept = void (*)(void* context, int64_t j, int64_t i, uint16_t t);

// Large sets, a block of candidates at a time against all rows to cover; see stream.h.
struct StreamProblem {
  Features candidates, covered;
  int64_t N, M;
  Metric metric;
  double radius;
  const float *weight, *quality;  // [M], [N] or null: ones
  double maximum;                 // the largest weight times quality
};

struct StreamBadRows {
  int64_t candidates, covered;
};

// One pass over all pairs. `best` [M] is what is reached already, or null: nothing. Outputs that are null are not made:
//   t [N, M padded to panels] and gains [N] of a first pick; gains [N]; largest [N]; the pairs above best as a sparse
//   matrix by candidates, its columns ascending.
struct StreamResult {
  uint16_t* t = nullptr;
  int64_t* gains = nullptr;
  uint16_t* largest = nullptr;
  struct Sparse {
    std::vector<int64_t> offsets;  // [N + 1]
    std::vector<int64_t> ids;
    std::vector<uint16_t> values;
  }* sparse = nullptr;
};
StreamBadRows stream_pairs(const StreamProblem& problem, const uint16_t* best, const StreamResult& result, int threads);

}  // namespace mrt
