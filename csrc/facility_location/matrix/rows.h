// Rows of a table of pairs, of any length that is a multiple of 32.
#pragma once

#include "tile/vector.h"

namespace mrt {
namespace {

// Sum of max(t - reached, 0); reached null: of t. In parts whose sums fit int32.
int64_t row_excess(const uint16_t* t, const uint16_t* reached, int64_t count) {
  constexpr int64_t PART = 1 << 15;
  alignas(64) static const uint16_t nothing[PART] = {};
  int64_t sum = 0;
  for (int64_t i = 0; i < count; i += PART)
    sum += excess(t + i, reached == nullptr ? nothing : reached + i, count - i < PART ? count - i : PART);
  return sum;
}

// reached = max(reached, t).
void row_reach(const uint16_t* __restrict t, int64_t count, uint16_t* __restrict reached) {
  for (int64_t i = 0; i < count; ++i) reached[i] = t[i] > reached[i] ? t[i] : reached[i];
}

// Candidate k owns the rows that it reaches further than all before it.
void row_own(const uint16_t* __restrict t, int64_t count, int32_t k, uint16_t* __restrict reached,
             int32_t* __restrict owner) {
  for (int64_t i = 0; i < count; ++i) {
    owner[i] = t[i] > reached[i] ? k : owner[i];
    reached[i] = t[i] > reached[i] ? t[i] : reached[i];
  }
}

}  // namespace
}  // namespace mrt
