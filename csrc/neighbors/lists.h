// The candidate lists of rows: memory, what happens when one is full, and the answer of a row.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/memory.h"
#include "neighbors/neighbors.h"

namespace mrt {

// Slots per row: the k kept, and as many again (at least 192) so that a list is shortened rarely.
inline int64_t list_capacity(int64_t k) {
  return round_up(k + std::max<int64_t>(k, 192), PANEL);
}

template <class Score>
class ListMemory {
 public:
  ListMemory() = default;
  ListMemory(int64_t rows, int64_t k) : rows_(round_up(rows, PANEL)), capacity_(list_capacity(k)) {
    const auto carve = [&](Arena arena, Lists<Score>& lists) {
      lists.threshold = arena.take<Score>(rows_);
      lists.count = arena.take<int32_t>(rows_);
      lists.scores = arena.take<Score>(rows_ * capacity_);
      lists.ids = arena.take<int32_t>(rows_ * capacity_);
      return arena.used();
    };
    buffer_ = Buffer(carve(Arena(), lists_) + 1);
    carve(Arena(buffer_.data()), lists_);
  }
  static int64_t bytes(int64_t rows, int64_t k) { return round_up(rows, PANEL) * 8 * (list_capacity(k) + 1) + 320; }

  int64_t capacity() const { return capacity_; }

  // Empty lists of rows first … last - 1.
  Lists<Score> open(int64_t first, int64_t last) {
    Lists<Score> lists = lists_;
    lists.first = first;
    lists.last = last;
    lists.capacity = capacity_;
    lists.rows = nullptr;
    std::fill(lists.count, lists.count + (last - first), 0);
    std::fill(lists.threshold, lists.threshold + (last - first), std::numeric_limits<Score>::lowest());
    std::fill(lists.threshold + (last - first), lists.threshold + round_up(last - first, PANEL), never());
    return lists;
  }
  // No score of a finite row reaches it.
  static Score never() {
    return std::numeric_limits<Score>::has_infinity ? std::numeric_limits<Score>::infinity()
                                                    : std::numeric_limits<Score>::max();
  }

 private:
  int64_t rows_ = 0, capacity_ = 0;
  Lists<Score> lists_{};
  Buffer buffer_;
};

// How candidates of one row compare: larger value first, then the lower index.
template <class Score>
struct Candidate {
  double value;
  int32_t id;
  Score score;
  bool operator<(const Candidate& other) const {
    return value > other.value || (value == other.value && id < other.id);
  }
};

}  // namespace mrt
