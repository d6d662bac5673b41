// Seeded problems whose selections any machine can hash: the same bits wherever they are made.
//
// Definition: mrtkern/digest/problems.py. Everything is an integer until the last step, in which one below 2^24 becomes
// a float32 and is multiplied by a power of two: exact. Copies, near-copies, zero rows and rows of -1, 0, 1 are planted,
// so that equal scores decide.
#pragma once

#include <cstdint>

#include "facility_location/facility_location.h"
#include "neighbors/neighbors.h"

namespace mrt {
namespace digest {

enum class Kind { picks, lists, kept };

constexpr int64_t PROBLEMS = 1000;  // of a block
constexpr int64_t LABELS = 3;       // row r of a problem with groups has the label r mod LABELS

// What the problems of a block have in common.
struct Rule {
  int64_t D, most;      // features, the largest number of rows
  bool is_grid;         // rows of -1, 0, 1
  Metric metric;        // picks, lists
  Fill fill;            // picks
  bool has_weights;     // picks: weight, quality and bonus
  Precision precision;  // lists
  bool is_self;         // lists: otherwise the first half of the rows among the second
  bool has_groups;      // lists
  double threshold;     // kept
};
Rule rule_of(Kind kind, int64_t block);

// Of the first `count` problems of a block: offsets [count + 1] of their rows and k [count].
void make_sizes(Kind kind, int64_t block, int64_t count, int64_t* offsets, int64_t* k);

// Their rows x [T, D], and weight, quality, bonus [T] where the rule has them.
void make_rows(Kind kind, int64_t block, int64_t count, const int64_t* offsets, float* x, float* weight, float* quality,
               float* bonus);

}  // namespace digest
}  // namespace mrt
