// neighbors on the CPU: proposals on integer (or float32) tiles, decided by float64 scores of the given rows.
//
// Idea    A product of two lattice rows is off by at most E = radius sqrt(D) + D / 4 from the product of the unit rows it
//         stands for, so whatever lies more than 2 E below the k-th largest product of a row cannot be among its k
//         nearest. The few that remain are scored in float64. A list that fills up nevertheless is decided exactly in
//         place: the answer is exact whatever the data; near-duplicates only cost time.
// Self    Each tile is computed once and offered to the lists of both sides. Blocks of rows meet in rounds in which no
//         block has two partners (the circle method), so lists need neither locks nor copies.
// Memory  packed rows 4 U ceil16(rows) for each side, 8 bytes per squared length, per list 8 (capacity + 1): one list per row
//         of x in the symmetric schedule, otherwise one per row of each thread's block.
#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <vector>

#include "common/interrupt.h"
#include "common/parallel.h"
#include "neighbors/lists.h"
#include "neighbors/neighbors_kernels.h"
#include "tile/blocks.h"
#include "tile/panels.h"
#include "tile/tile_kernels.h"

namespace mrt {

namespace {

const ScanKernels<int32_t>& scans(int32_t) {
  return neighbors_kernels().pairs;
}
const ScanKernels<float>& scans(float) {
  return neighbors_kernels().floats;
}

template <class Score>
class Search {
 public:
  Search(const NeighborsProblem& problem, const NeighborsResult& result, int threads)
      : p_(problem), r_(result), threads_(threads) {}

  BadRows run() {
    squares_x_ = row_squares(p_.x, p_.M, threads_);
    if (!p_.is_self) squares_y_ = row_squares(p_.y, p_.N, threads_);
    const std::vector<double>& columns = squares_y();
    longest_ = columns.empty() ? 0.0 : std::sqrt(*std::max_element(columns.begin(), columns.end()));
    const bool is_dot = p_.metric == Metric::dot, is_symmetric = p_.is_self && !is_dot;
    x_.emplace(p_.x, p_.M, packing(is_common()), threads_);
    if (!is_symmetric) y_.emplace(p_.y, p_.N, packing(is_dot), threads_);
    const BadRows bad{x_->bad_row(), is_symmetric ? -1 : y_->bad_row()};
    if (bad.x >= 0 || bad.y >= 0 || p_.k == 0) return bad;
    workspaces_.resize(std::max(threads_, 1));
    is_symmetric ? symmetric() : rectangular();
    return bad;
  }

 private:
  struct Workspace {
    Search* search = nullptr;
    Worker* worker = nullptr;
    ListMemory<Score> memory;
    std::vector<float> converted;
    std::vector<double> row, wide, dots;
    std::vector<Candidate<Score>> candidates;
    int64_t loaded = -1;  // which row of x `row` holds
  };

  const std::vector<double>& squares_y() const { return p_.is_self ? squares_x_ : squares_y_; }

  // Whether all products of a row are 0.
  bool is_zero(int64_t row) const { return squares_x_[row] == 0 || longest_ == 0; }

  Packing packing(bool by_longest) const {
    const double length = by_longest ? longest_ : 0.0;
    if (p_.precision == Precision::float32) return {{}, {true, length}};
    return {{p_.radius, false, length}, {}};
  }

  Workspace& workspace(Worker& worker) {
    Workspace& w = workspaces_[worker.index()];
    if (w.search == nullptr) {
      w.search = this;
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
      mine.search->make_room(full, r, mine);
    };
    lists.context = &w;
  }

  Lists<Score> begin(ListMemory<Score>& memory, int64_t first, int64_t last) {
    Lists<Score> lists = memory.open(first, last);
    for (int64_t i = first; i < last; ++i)
      if (is_zero(i)) lists.threshold[i - first] = memory.never();  // answered by `fill`
    return lists;
  }

  // A block of rows against all columns, then its answers, while its lists are in the cache.
  void rectangular() {
    const int64_t P = num_panels(p_.M), Q = num_panels(p_.N), block = block_panels(p_.M, x_->U(), threads_);
    const ProgressRange whole(0.0, 1.0);
    parallel_for((P + block - 1) / block, 1, threads_, [&](Worker& worker, int64_t item) {
      Workspace& w = workspace(worker);
      if (w.memory.capacity() == 0) w.memory = ListMemory<Score>(block * PANEL, p_.k);
      const int64_t first = item * block, last = std::min(P, first + block);
      Lists<Score> lists = begin(w.memory, first * PANEL, std::min(p_.M, last * PANEL));
      open(lists, w);
      for (int64_t q = 0; q < Q; q += MOST_COLUMNS) {
        scan_.scan(x_->panels(first, last), y_->panels(q, std::min(Q, q + MOST_COLUMNS)), x_->U(), lists, exclusion(),
                   p_.N);
        worker.checkpoint();
      }
      for (int64_t row = lists.first; row < lists.last; ++row) finish(lists, row, w);
    });
  }

  // Blocks meet in rounds: in round r block i meets block (r - i) mod B, so that no block has two partners.
  void symmetric() {
    const int64_t P = num_panels(p_.M), block = block_panels(p_.M, x_->U(), threads_), B = (P + block - 1) / block;
    ListMemory<Score> memory(p_.M, p_.k);
    const Lists<Score> all = begin(memory, 0, p_.M);
    for (int64_t round = 0; round < B; ++round) {
      std::vector<int64_t> firsts;
      for (int64_t i = 0; i < B; ++i)
        if (i <= (round - i + B) % B) firsts.push_back(i);
      const ProgressRange part(static_cast<double>(round) / static_cast<double>(B),
                               static_cast<double>(round + 1) / static_cast<double>(B));
      parallel_for(static_cast<int64_t>(firsts.size()), 1, threads_, [&](Worker& worker, int64_t item) {
        Workspace& w = workspace(worker);
        Lists<Score> lists = all;
        open(lists, w);
        const int64_t i = firsts[item] * block, j = (round - firsts[item] + B) % B * block;
        scan_.scan_both(x_->panels(i, std::min(P, i + block)), x_->panels(j, std::min(P, j + block)), x_->U(), lists,
                        lists, exclusion(), p_.N);
      });
    }
    parallel_for(P, 1, threads_, [&](Worker& worker, int64_t panel) {
      Workspace& w = workspace(worker);
      Lists<Score> lists = all;
      for (int64_t row = panel * PANEL; row < std::min(p_.M, (panel + 1) * PANEL); ++row) finish(lists, row, w);
    });
  }

  // Called with fewer than PANEL slots free. Most lists shrink by their own threshold; one full of candidates that the
  // proposals cannot tell apart is decided.
  void make_room(Lists<Score>& lists, int64_t r, Workspace& w) {
    const int64_t spare = lists.capacity - p_.k;
    scan_.cut(lists, r, p_.k, p_.k / 8, margin_);
    if (lists.count[r] <= p_.k + spare / 2) return;
    const int64_t row = lists.first + r, n = decide(lists, r, w);
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
    const int64_t n = lists.count[r], row = lists.first + r, kept = std::min(n, p_.k);
    const int32_t* const ids = lists.ids + r * lists.capacity;
    const Score* const scores = lists.scores + r * lists.capacity;
    if (p_.precision == Precision::exact) {
      if (w.loaded != row) kernel_.wide_row(p_.x, row, w.converted.data(), w.row.data());
      w.loaded = row;
      kernel_.exact_dots(w.row.data(), p_.y, ids, n, w.converted.data(), w.wide.data(), w.dots.data());
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
    const double cosine = cosine_of(dot, squares_x_[row], squares_y()[id]);
    return p_.metric == Metric::shifted_cosine ? (1.0 + cosine) / 2.0 : cosine;
  }

  // The smallest score that a candidate as good as `last` can have.
  Score least(int64_t row, const Candidate<Score>& last) const {
    if (p_.precision != Precision::exact) return last.score;
    const double cosine = p_.metric == Metric::shifted_cosine ? 2.0 * last.value - 1.0 : last.value;
    return static_cast<Score>(std::floor(cosine / unit(row) - error_));
  }

  // Whether rows of x, too, are divided by the longest row: by definition where the products decide, and x meets itself.
  bool is_common() const { return p_.metric == Metric::dot && p_.is_self && p_.precision != Precision::exact; }

  // The score that one step of the products stands for.
  double unit(int64_t row) const {
    const double square = p_.precision == Precision::float32 ? 1.0 : p_.radius * p_.radius;
    if (p_.metric != Metric::dot) return 1.0 / square;
    return (is_common() ? longest_ : std::sqrt(squares_x_[row])) * longest_ / square;
  }

  // A value in the units of the user.
  float report(int64_t row, double value) const {
    if (p_.precision != Precision::exact) value *= unit(row);
    if (p_.metric == Metric::dot) return static_cast<float>(value);
    const bool is_final = p_.precision == Precision::exact;
    if (!is_final) value = std::clamp(value, -1.0, 1.0);
    if (p_.metric == Metric::clamped_cosine) return static_cast<float>(std::max(value, 0.0));
    return static_cast<float>(p_.metric == Metric::shifted_cosine && !is_final ? (1.0 + value) / 2.0 : value);
  }

  void finish(Lists<Score>& lists, int64_t row, Workspace& w) {
    int64_t* const ids = r_.ids + row * p_.k;
    float* const scores = r_.scores + row * p_.k;
    const int64_t r = row - lists.first;
    scan_.cut(lists, r, p_.k, 0, margin_);
    int64_t n = decide(lists, r, w);
    const bool ties_at_zero = p_.metric == Metric::clamped_cosine || is_zero(row);
    while (ties_at_zero && n > 0 && w.candidates[n - 1].value <= 0) --n;
    for (int64_t i = 0; i < n; ++i) {
      ids[i] = w.candidates[i].id;
      scores[i] = report(row, w.candidates[i].value);
    }
    if (ties_at_zero) n = fill(row, n, ids, scores);
    std::fill(ids + n, ids + p_.k, -1);
    std::fill(scores + n, scores + p_.k, -std::numeric_limits<float>::infinity());
  }

  // All others have similarity 0: the lowest of them follow. Returns how many neighbours there are.
  int64_t fill(int64_t row, int64_t n, int64_t* ids, float* scores) const {
    std::vector<int64_t> known(ids, ids + n);
    std::sort(known.begin(), known.end());
    for (int64_t j = 0; j < p_.N && n < p_.k; ++j) {
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
  const double error_ = product_error(p_.radius, p_.x.columns);
  const Score margin_ = p_.precision == Precision::exact ? static_cast<Score>(2 * error_) : Score();
  double longest_ = 0.0;
  std::vector<double> squares_x_, squares_y_;
  std::optional<PackedRows> x_, y_;
  std::vector<Workspace> workspaces_;
};

}  // namespace

BadRows neighbors(const NeighborsProblem& problem, const NeighborsResult& result, int threads) {
  if (problem.precision == Precision::float32) return Search<float>(problem, result, threads).run();
  return Search<int32_t>(problem, result, threads).run();
}

}  // namespace mrt
