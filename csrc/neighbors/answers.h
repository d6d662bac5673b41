// What every search for nearest rows does, whichever tiles it computes: how rows are packed, what happens to a list that is
// full, and the answer of a row.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "neighbors/lists.h"
#include "neighbors/neighbors_kernels.h"
#include "tile/blocks.h"
#include "tile/panels.h"
#include "tile/tile_kernels.h"

namespace mrt {

inline const ScanKernels<int32_t>& scans(int32_t) {
  return neighbors_kernels().pairs;
}
inline const ScanKernels<float>& scans(float) {
  return neighbors_kernels().floats;
}

template <class Score>
class Answers {
 protected:
  Answers(const NeighborsProblem& problem, const NeighborsResult& result, int threads)
      : p_(problem), r_(result), threads_(threads) {
    squares_x_ = row_squares(p_.x, p_.M, threads_);
    if (!p_.is_self) squares_y_ = row_squares(p_.y, p_.N, threads_);
    longest_ = longest(squares_y());
    if (p_.metric == Metric::rbf) longest_ = std::max(longest_, longest(squares_x_));
    workspaces_.resize(std::max(threads_, 1));
  }
  ~Answers() = default;

  struct Workspace {
    Answers* answers = nullptr;
    Worker* worker = nullptr;
    ListMemory<Score> memory;
    std::vector<float> converted;
    std::vector<double> row, wide, dots;
    std::vector<Candidate<Score>> candidates;
    int64_t loaded = -1;  // which row of x `row` holds
  };

  const std::vector<double>& squares_y() const { return p_.is_self ? squares_x_ : squares_y_; }

  static double longest(const std::vector<double>& squares) {
    return squares.empty() ? 0.0 : std::sqrt(*std::max_element(squares.begin(), squares.end()));
  }

  // Whether all products of a row are 0. Distances are none.
  bool is_zero(int64_t row) const { return p_.metric != Metric::rbf && (squares_x_[row] == 0 || longest_ == 0); }

  bool is_rbf() const { return p_.metric == Metric::rbf; }

  // Rows of x and of y as the products take them. Directions only, or divided by the longest row; distances, too, are
  // ordered by products: |x - y|^2 = |x|^2 - 2 (<x, y> - |y|^2 / 2).
  Packing packing_x() const {
    Packing packing = packed_by(is_common() || is_rbf());
    if (is_rbf()) packing.tail.side = Tail::Side::x;
    return packing;
  }
  Packing packing_y() const {
    Packing packing = packed_by(p_.metric == Metric::dot || is_rbf());
    if (is_rbf()) packing.tail = {Tail::Side::y, squares_y().data(), 0.5 / unit(0)};
    return packing;
  }
  Packing packed_by(bool by_longest) const {
    const double length = by_longest ? longest_ : 0.0;
    if (p_.precision == Precision::float32) return {{}, {true, length}};
    return {{p_.radius, false, length}, {}};
  }

  Workspace& workspace(Worker& worker) {
    Workspace& w = workspaces_[worker.index()];
    if (w.answers == nullptr) {
      w.answers = this;
      w.converted.resize(p_.x.columns);
      for (std::vector<double>* array : {&w.row, &w.wide}) array->resize(p_.x.columns);
      w.dots.resize(list_capacity(p_.k));
      w.candidates.resize(list_capacity(p_.k));
    }
    w.worker = &worker;
    return w;
  }

  Exclusion exclusion() const { return {p_.exclude_self, p_.group_x, p_.group_y}; }

  void open(Lists<Score>& lists, Workspace& w) {
    lists.full = [](void* context, Lists<Score>& full, int64_t r) {
      Workspace& mine = *static_cast<Workspace*>(context);
      mine.answers->make_room(full, r, mine);
    };
    lists.context = &w;
  }

  // Empty lists of rows first … last - 1, or of rows[first … last - 1].
  Lists<Score> begin(ListMemory<Score>& memory, int64_t first, int64_t last, const int32_t* rows = nullptr) {
    Lists<Score> lists = memory.open(first, last);
    if (rows != nullptr) lists.rows = rows + first;
    for (int64_t r = 0; r < last - first; ++r)
      if (is_zero(lists.row(r))) lists.threshold[r] = memory.never();  // answered by `fill`
    return lists;
  }

  // Called with fewer than PANEL slots free. Most lists shrink by their own threshold; one full of candidates that the
  // proposals cannot tell apart is decided.
  void make_room(Lists<Score>& lists, int64_t r, Workspace& w) {
    const int64_t spare = lists.capacity - p_.k;
    scan_.cut(lists, r, p_.k, p_.k / 8, margin_);
    if (lists.count[r] <= p_.k + spare / 2) return;
    const int64_t row = lists.row(r), n = decide(lists, r, w);
    const Candidate<Score>* const best = w.candidates.data();
    for (int64_t i = 0; i < n; ++i) {
      lists.scores[r * lists.capacity + i] = best[i].score;
      lists.ids[r * lists.capacity + i] = best[i].id;
    }
    lists.count[r] = static_cast<int32_t>(n);
    lists.threshold[r] = std::max(lists.threshold[r], least(row, best[n - 1]));
    w.worker->checkpoint();
  }

  // The candidates of a list by value, the k best of them in order. Returns how many.
  int64_t decide(const Lists<Score>& lists, int64_t r, Workspace& w) {
    const int64_t n = lists.count[r], row = lists.row(r), kept = std::min(n, p_.k);
    const int32_t* const ids = lists.ids + r * lists.capacity;
    const Score* const scores = lists.scores + r * lists.capacity;
    if (p_.precision == Precision::exact) {
      if (w.loaded != row) kernel_.wide_row(p_.x, row, w.converted.data(), w.row.data());
      w.loaded = row;
      (is_rbf() ? kernel_.exact_distances : kernel_.exact_dots)(w.row.data(), p_.y, ids, n, w.converted.data(),
                                                                w.wide.data(), w.dots.data());
    }
    for (int64_t i = 0; i < n; ++i) {
      const double value =
          p_.precision == Precision::exact ? metric(row, ids[i], w.dots[i]) : static_cast<double>(scores[i]);
      w.candidates[i] = {value, ids[i], scores[i]};
    }
    const auto begin = w.candidates.begin();
    if (kept < n) std::nth_element(begin, begin + kept - 1, begin + n);
    std::sort(begin, begin + kept);
    return kept;
  }

  // What a float64 product means, except that negative cosines are left as they are: `report` clamps them.
  double metric(int64_t row, int64_t id, double dot) const {
    if (p_.metric == Metric::dot) return dot;
    if (is_rbf()) return -dot;  // a squared distance: the nearest has the largest value
    const double cosine = cosine_of(dot, squares_x_[row], squares_y()[id]);
    return p_.metric == Metric::shifted_cosine ? (1.0 + cosine) / 2.0 : cosine;
  }

  // The smallest score that a candidate as good as `last` can have.
  Score least(int64_t row, const Candidate<Score>& last) const {
    if (p_.precision != Precision::exact) return last.score;
    if (is_rbf()) return static_cast<Score>(std::floor((squares_x_[row] + last.value) / 2.0 / unit(row) - error_));
    const double cosine = p_.metric == Metric::shifted_cosine ? 2.0 * last.value - 1.0 : last.value;
    return static_cast<Score>(std::floor(cosine / unit(row) - error_));
  }

  // Whether rows of x, too, are divided by the longest row: by definition where the products decide, and x meets itself.
  bool is_common() const { return p_.metric == Metric::dot && p_.is_self && p_.precision != Precision::exact; }

  // The score that one step of the products stands for.
  double unit(int64_t row) const {
    const double square = p_.precision == Precision::float32 ? 1.0 : p_.radius * p_.radius;
    if (is_rbf()) return longest_ > 0 ? longest_ * longest_ / square : 1.0;
    if (p_.metric != Metric::dot) return 1.0 / square;
    return (is_common() ? longest_ : std::sqrt(squares_x_[row])) * longest_ / square;
  }

  // A value in the units of the user.
  float report(int64_t row, double value) const {
    if (p_.precision != Precision::exact) value *= unit(row);
    if (p_.metric == Metric::dot) return static_cast<float>(value);
    if (is_rbf()) return static_cast<float>(std::exp(p_.gamma * value));
    const bool is_final = p_.precision == Precision::exact;
    if (!is_final) value = std::clamp(value, -1.0, 1.0);
    if (p_.metric == Metric::clamped_cosine) return static_cast<float>(std::max(value, 0.0));
    return static_cast<float>(p_.metric == Metric::shifted_cosine && !is_final ? (1.0 + value) / 2.0 : value);
  }

  // The answer of the row of a list. Rows of y that have similarity 0 with it without ever being a candidate are taken
  // from what all() returns, ascending; null: every row.
  template <class All>
  void finish(Lists<Score>& lists, int64_t r, Workspace& w, const All& all) {
    const int64_t row = lists.row(r);
    int64_t* const ids = r_.ids + row * p_.k;
    float* const scores = r_.scores + row * p_.k;
    scan_.cut(lists, r, p_.k, 0, margin_);
    int64_t n = decide(lists, r, w);
    const bool ties_at_zero = p_.metric == Metric::clamped_cosine || is_zero(row);
    while (ties_at_zero && n > 0 && w.candidates[n - 1].value <= 0) --n;
    for (int64_t i = 0; i < n; ++i) {
      ids[i] = w.candidates[i].id;
      scores[i] = report(row, w.candidates[i].value);
    }
    if (ties_at_zero && n < p_.k) n = fill(row, n, all(), ids, scores);
    std::fill(ids + n, ids + p_.k, -1);
    std::fill(scores + n, scores + p_.k, -std::numeric_limits<float>::infinity());
  }

  // All others have similarity 0: the lowest of them follow. Returns how many neighbours there are.
  int64_t fill(int64_t row, int64_t n, const std::vector<int32_t>* all, int64_t* ids, float* scores) const {
    std::vector<int64_t> known(ids, ids + n);
    std::sort(known.begin(), known.end());
    const int64_t N = all == nullptr ? p_.N : static_cast<int64_t>(all->size());
    for (int64_t i = 0; i < N && n < p_.k; ++i) {
      const int64_t j = all == nullptr ? i : (*all)[i];
      if ((p_.exclude_self && j == row) || std::binary_search(known.begin(), known.end(), j)) continue;
      if (p_.group_x != nullptr && p_.group_x[row] == p_.group_y[j]) continue;
      ids[n] = j;
      scores[n++] = p_.metric == Metric::shifted_cosine ? 0.5f : 0.0f;
    }
    return n;
  }

  const NeighborsProblem& p_;
  const NeighborsResult& r_;
  const int threads_;
  const TileKernels& kernel_ = tile_kernels();
  const ScanKernels<Score>& scan_ = scans(Score());
  const double error_ = product_error(p_.radius, p_.x.columns) + is_rbf();  // a tail is rounded, too
  const Score margin_ = p_.precision == Precision::exact ? static_cast<Score>(2 * error_) : Score();
  double longest_ = 0.0;
  std::vector<double> squares_x_, squares_y_;
  std::vector<Workspace> workspaces_;
};

}  // namespace mrt
