// How a pass over all pairs is cut: blocks of 64 panels of candidates with 64 panels of rows to cover, each pair of blocks
// once where candidates cover themselves; and rows picked from a packed matrix.
#pragma once

#include <algorithm>
#include <cstring>

#include "common/memory.h"
#include "facility_location/features/pair_block.h"
#include "tile/blocks.h"
#include "tile/panels.h"

namespace mrt {

class Grid {
 public:
  Grid(const PackedRows& x, int64_t N, const PackedRows& y, int64_t M)
      : x_(x), y_(y), rows_(num_panels(N)), columns_(num_panels(M)), is_mirrored_(&x == &y) {}
  int64_t row_blocks() const { return (rows_ + BLOCK_PANELS - 1) / BLOCK_PANELS; }
  int64_t column_blocks() const { return (columns_ + BLOCK_PANELS - 1) / BLOCK_PANELS; }
  int64_t size() const { return is_mirrored_ ? row_blocks() * (row_blocks() + 1) / 2 : row_blocks() * column_blocks(); }
  BlockPair at(int64_t item) const {
    return is_mirrored_ ? block_pair(item) : BlockPair{item % row_blocks(), item / row_blocks()};
  }
  int64_t item(BlockPair pair) const {
    return is_mirrored_ ? pair.column * (pair.column + 1) / 2 + pair.row : pair.column * row_blocks() + pair.row;
  }
  PairBlock block(BlockPair pair, uint64_t* alive) const {
    return {part(x_, pair.row, rows_), part(y_, pair.column, columns_), x_.U(), is_mirrored_, alive};
  }
  bool is_mirrored() const { return is_mirrored_; }

 private:
  static Panels part(const PackedRows& packed, int64_t block, int64_t panels) {
    return packed.panels(block * BLOCK_PANELS, std::min(panels, (block + 1) * BLOCK_PANELS));
  }
  const PackedRows &x_, &y_;
  const int64_t rows_, columns_;
  const bool is_mirrored_;
};

// Rows of a packed matrix as panels of their own, with an entry of a vector for each.
class GatheredRows {
 public:
  GatheredRows(const PackedRows& from, const std::vector<float>& values, const int32_t* ids, int64_t count)
      : count_(count), U_(from.U()), buffer_(num_panels(count) * PANEL * U_ * sizeof(Unit) + 1) {
    std::memset(buffer_.data(), 0, buffer_.size());
    values_.assign(round_up(count, PANEL), 0.0f);
    const Unit* const in = from.panels(0, 0).units;
    auto* const out = reinterpret_cast<Unit*>(buffer_.data());
    for (int64_t k = 0; k < count; ++k) {
      const Unit* const row = in + ids[k] / PANEL * U_ * PANEL + ids[k] % PANEL;
      Unit* const to = out + k / PANEL * U_ * PANEL + k % PANEL;
      for (int64_t u = 0; u < U_; ++u) to[u * PANEL] = row[u * PANEL];
      values_[k] = values[ids[k]];
    }
  }
  int64_t count() const { return count_; }
  const float* values() const { return values_.data(); }
  Panels panels() const { return panels(0, num_panels(count_)); }
  Panels panels(int64_t first, int64_t last) const {
    return {reinterpret_cast<const Unit*>(buffer_.data()), first, std::min(last, num_panels(count_))};
  }

 private:
  const int64_t count_, U_;
  Buffer buffer_;
  std::vector<float> values_;
};

// The lanes of a pass, a pair of blocks at a time for each thread.
class LaneSums {
 public:
  explicit LaneSums(int threads) : all_(std::max(threads, 1)) {}
  // All zero, for candidates from `first` and from `second` on.
  GainLanes of(int thread, int64_t first, int64_t second) {
    Buffer& mine = all_[thread];
    if (mine.size() == 0) mine = Buffer(2 * BYTES);
    std::memset(mine.data(), 0, mine.size());
    auto* const lanes = reinterpret_cast<int32_t (*)[PANEL]>(mine.data());
    return {{lanes, lanes + BLOCK_ROWS}, first, second};
  }
  // Adds the lanes of the candidates below N to their sums; other threads may be adding, too.
  static void add(const GainLanes& lanes, int64_t N, int64_t* sums) {
    for (int side = 0; side < 2; ++side) {
      const int64_t first = side == 0 ? lanes.first : lanes.second;
      if (side == 1 && lanes.second == lanes.first) return;
      for (int64_t j = first; j < std::min(N, first + BLOCK_ROWS); ++j) {
        int64_t sum = 0;
        for (int c = 0; c < PANEL; ++c) sum += lanes.lanes[side][j - first][c];
        if (sum != 0) __atomic_fetch_add(sums + j, sum, __ATOMIC_RELAXED);
      }
    }
  }

 private:
  static constexpr size_t BYTES = BLOCK_ROWS * PANEL * sizeof(int32_t);
  std::vector<Buffer> all_;
};

}  // namespace mrt
