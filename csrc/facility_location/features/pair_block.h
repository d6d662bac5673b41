// A block of pairs as kernels get it, and where they leave sums and kept pairs.
#pragma once

#include <vector>

#include "facility_location/facility_location.h"
#include "tile/panels.h"

namespace mrt {

constexpr int64_t BLOCK_PANELS = 64;  // panels of rows, and of columns, of a block
constexpr int64_t BLOCK_ROWS = BLOCK_PANELS * PANEL;

struct PairBlock {
  Panels rows, columns;  // candidates; rows to cover
  int64_t U;
  bool is_mirrored = false;   // rows and columns are of one matrix, and the block also stands for its mirror image
  uint64_t* alive = nullptr;  // [panels of rows] bit q: the tile with panel q of the columns may hold a live pair
};

// Sixteen unfinished sums of each candidate of one or two blocks of rows.
struct GainLanes {
  int32_t (*lanes[2])[PANEL];  // [BLOCK_ROWS, 16] each
  int64_t first;               // the candidate of lanes[0][0]; every other candidate is of the second block
  int64_t second;

  template <class Lanes>
  MRT_INLINE void add(int64_t j, const Lanes& more) const {
    const bool is_first = static_cast<uint64_t>(j - first) < static_cast<uint64_t>(BLOCK_ROWS);
    int32_t* const mine = is_first ? lanes[0][j - first] : lanes[1][j - second];
    Lanes sum;
    __builtin_memcpy(&sum, mine, sizeof sum);
    sum += more;
    __builtin_memcpy(mine, &sum, sizeof sum);
  }
};

// Pairs that exceed what is reached, as a pass finds them: of a candidate a few at a time.
//   head      number of pairs << 16 | candidate within its block
//   pairs     16 bits of the row within its block of the lists, 15 bits of t
struct KeptPairs {
  int64_t first;  // candidate of the first block; others are of the block of `second`
  int64_t second;
  uint32_t* ends[2];  // where the next words go, of either block; the caller leaves room for a whole block

  template <class Write>
  MRT_INLINE void write(int64_t j, int count, const Write& pairs) {
    const bool is_first = static_cast<uint64_t>(j - first) < static_cast<uint64_t>(BLOCK_ROWS);
    uint32_t*& end = ends[is_first ? 0 : 1];
    const auto within = static_cast<uint32_t>(j - (is_first ? first : second));
    *end = static_cast<uint32_t>(count) << 16 | within;
    pairs(end + 1);
    end += 1 + count;
  }
};

// Words that one side of a block can need, and the register that is written beyond them.
constexpr int64_t BLOCK_WORDS = BLOCK_ROWS * (BLOCK_ROWS + BLOCK_PANELS) + PANEL;

}  // namespace mrt
