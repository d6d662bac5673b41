// neighbors on the CPU: the epilogues that keep what may be among the k largest scores.
//
//   scan        every tile: scores that reach the threshold of their row (or, in the symmetric schedule, of their column)
//               are appended to the row's (the column's) list
//   scan_cell   the same for rows picked from several panels, and columns that lie in another order than their numbers
//   connect     every tile: pairs that reach a threshold are reported
//   cut         a list is shortened to what can still be among its k largest
//
// A tile costs one comparison for 16 scores unless one of them passes, and few do: k log(N / k) of N in random order.
#pragma once

#include "neighbors/neighbors.h"
#include "tile/filter.h"
#include "tile/product.h"

namespace mrt {
namespace {

template <class Score>
MRT_INLINE void append(Lists<Score>& lists, int64_t r, const Score* scores, const int32_t* ids, uint32_t mask) {
  const int64_t slot = r * lists.capacity + lists.count[r];
  compress(scores, mask, lists.scores + slot);
  compress(ids, mask, lists.ids + slot);
  lists.count[r] += __builtin_popcount(mask);
  if (lists.count[r] > lists.capacity - PANEL) lists.full(lists.context, lists, r);
}

// One comparison per 16 scores; with BOTH each pair is seen once and offered to the lists of both of its rows.
template <class Score, bool BOTH>
struct Scan {
  Lists<Score>&rows, &columns;
  Exclusion exclusion;
  int64_t N;  // columns beyond are padding

  MRT_INLINE void operator()(int64_t row, int64_t column, const Score* tile) const {
    const int64_t r0 = row - rows.first;
    const bool is_diagonal = BOTH && row == column;
    alignas(32) uint16_t hits[PANEL];
    for (int r = 0; r < PANEL; ++r) {
      const Score threshold = rows.threshold[r0 + r];
      hits[r] = static_cast<uint16_t>(BOTH && !is_diagonal ? at_least_either(tile + r * PANEL, threshold,
                                                                             columns.threshold + column - columns.first)
                                                           : at_least(tile + r * PANEL, threshold));
    }
    const uint32_t hit_rows = not_zero(hits);
    if (hit_rows != 0) take(row, column, tile, hits, hit_rows, is_diagonal);
  }

  // Out of the hot path. Row by row, without a look at the rows in between.
  __attribute__((noinline)) void take(int64_t row, int64_t column, const Score* tile, const uint16_t* hits,
                                      uint32_t hit_rows, bool is_diagonal) const {
    alignas(64) int32_t ids[PANEL];
    for (int c = 0; c < PANEL; ++c) ids[c] = static_cast<int32_t>(column + c);
    const uint32_t inside = N - column < PANEL ? (1u << (N - column)) - 1 : 0xffff;
    const int64_t end = rows.last - row;
    if (end < PANEL) hit_rows &= (1u << end) - 1;
    for (; hit_rows != 0; hit_rows &= hit_rows - 1) {
      const int r = __builtin_ctz(hit_rows);
      const Score* scores = tile + r * PANEL;
      const int64_t slot = row + r - rows.first;
      uint32_t mask = hits[r] & inside;
      if (exclusion.any()) mask = allowed(row + r, column, mask);
      append(rows, slot, scores, ids, mask & at_least(scores, rows.threshold[slot]));
      if (!BOTH || is_diagonal) continue;
      const int32_t id = static_cast<int32_t>(row + r);
      for (; mask != 0; mask &= mask - 1) {
        const int64_t c = __builtin_ctz(mask), j = column + c - columns.first;
        if (scores[c] >= columns.threshold[j]) offer(columns, j, scores[c], id);
      }
    }
  }

  static void offer(Lists<Score>& lists, int64_t r, Score score, int32_t id) {
    const int64_t slot = r * lists.capacity + lists.count[r]++;
    lists.scores[slot] = score;
    lists.ids[slot] = id;
    if (lists.count[r] > lists.capacity - PANEL) lists.full(lists.context, lists, r);
  }

  uint32_t allowed(int64_t row, int64_t column, uint32_t mask) const {
    if (exclusion.self && row >= column && row < column + PANEL) mask &= ~(1u << (row - column));
    if (exclusion.group_x == nullptr) return mask;
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      const int c = __builtin_ctz(rest);
      if (exclusion.group_x[row] == exclusion.group_y[column + c]) mask &= ~(1u << c);
    }
    return mask;
  }
};

template <class Kind>
void scan(const Panels& rows, const Panels& columns, int64_t U, Lists<typename Kind::Sum>& row_lists,
          const Exclusion& exclusion, int64_t N) {
  using Score = typename Kind::Sum;
  tiles<Kind>(rows, columns, U, false, Scan<Score, false>{row_lists, row_lists, exclusion, N});
}

template <class Kind>
void scan_both(const Panels& rows, const Panels& columns, int64_t U, Lists<typename Kind::Sum>& row_lists,
               Lists<typename Kind::Sum>& column_lists, const Exclusion& exclusion, int64_t N) {
  using Score = typename Kind::Sum;
  const bool is_upper = rows.first == columns.first;
  tiles<Kind>(rows, columns, U, is_upper, Scan<Score, true>{row_lists, column_lists, exclusion, N});
}

template <class Score>
struct ScanCell {
  Lists<Score>& lists;
  const Exclusion& exclusion;
  const Meeting& meeting;

  MRT_INLINE void operator()(int64_t row, int64_t column, const Score* tile) const {
    const int32_t* const slots = meeting.slots + row;
    alignas(32) uint16_t hits[PANEL];
    for (int r = 0; r < PANEL; ++r)
      hits[r] = static_cast<uint16_t>(at_least(tile + r * PANEL, lists.threshold[slots[r]]));
    const uint32_t hit_rows = not_zero(hits);
    if (hit_rows != 0) take(slots, column, tile, hits, hit_rows);
  }

  __attribute__((noinline)) void take(const int32_t* slots, int64_t column, const Score* tile, const uint16_t* hits,
                                      uint32_t hit_rows) const {
    const int32_t* const ids = meeting.members + column;
    const uint32_t inside = meeting.end - column < PANEL ? (1u << (meeting.end - column)) - 1 : 0xffff;
    for (; hit_rows != 0; hit_rows &= hit_rows - 1) {
      const int r = __builtin_ctz(hit_rows);
      const int64_t slot = slots[r];
      uint32_t mask = hits[r] & inside;
      if (exclusion.any()) mask = allowed(lists.row(slot), ids, mask);
      append(lists, slot, tile + r * PANEL, ids, mask);
    }
  }

  uint32_t allowed(int64_t row, const int32_t* ids, uint32_t mask) const {
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      const int c = __builtin_ctz(rest);
      const bool is_group = exclusion.group_x != nullptr && exclusion.group_x[row] == exclusion.group_y[ids[c]];
      if (is_group || (exclusion.self && ids[c] == row)) mask &= ~(1u << c);
    }
    return mask;
  }
};

template <class Kind>
void scan_cell(const Panels& rows, const Panels& columns, int64_t U, Lists<typename Kind::Sum>& lists,
               const Exclusion& exclusion, const Meeting& meeting) {
  tiles<Kind>(rows, columns, U, false, ScanCell<typename Kind::Sum>{lists, exclusion, meeting});
}

// Pairs of the upper triangle whose product reaches a threshold, one by one.
struct Connect {
  int64_t N;
  int32_t threshold;
  PairFound found;
  void* context;

  MRT_INLINE void operator()(int64_t row, int64_t column, const int32_t* tile) const {
    for (int r = 0; r < PANEL; ++r) {
      uint32_t mask = at_least(tile + r * PANEL, threshold);
      for (; mask != 0; mask &= mask - 1) {
        const int c = __builtin_ctz(mask);
        if (row + r < column + c && column + c < N) found(context, row + r, column + c, tile[r * PANEL + c]);
      }
    }
  }
};

void connect(const Panels& rows, const Panels& columns, int64_t U, int64_t N, int32_t threshold, PairFound found,
             void* context) {
  tiles<Pairs>(rows, columns, U, rows.first == columns.first, Connect{N, threshold, found, context});
}

// Raises the threshold of a list to what its k-th largest score implies, and drops what is below.
template <class Score>
void cut(Lists<Score>& lists, int64_t r, int64_t k, int64_t slack, Score margin) {
  Score* scores = lists.scores + r * lists.capacity;
  int32_t* ids = lists.ids + r * lists.capacity;
  const int64_t n = lists.count[r];
  if (n < k) return;
  const Score implied = reached_by(scores, n, k, slack) - margin;
  lists.threshold[r] = implied > lists.threshold[r] ? implied : lists.threshold[r];
  int32_t kept = 0;
  for (int64_t i = 0; i < n; i += PANEL) {
    const uint32_t inside = n - i < PANEL ? (1u << (n - i)) - 1 : 0xffff;
    const uint32_t mask = at_least(scores + i, lists.threshold[r]) & inside;
    compress(scores + i, mask, scores + kept);
    compress(ids + i, mask, ids + kept);
    kept += __builtin_popcount(mask);
  }
  lists.count[r] = kept;
}

}  // namespace
}  // namespace mrt
