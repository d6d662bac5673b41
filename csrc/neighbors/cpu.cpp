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
#include <functional>
#include <optional>
#include <vector>

#include "common/interrupt.h"
#include "neighbors/answers.h"

namespace mrt {

namespace {

template <class Score>
class Search : Answers<Score> {
  using Base = Answers<Score>;
  using Base::begin, Base::exclusion, Base::finish, Base::open, Base::p_, Base::packing_x, Base::packing_y, Base::scan_,
      Base::threads_, Base::workspace;
  using typename Base::Workspace;

 public:
  Search(const NeighborsProblem& problem, const NeighborsResult& result, int threads)
      : Base(problem, result, threads) {}

  BadRows run() {
    const bool is_symmetric = p_.is_self && p_.metric != Metric::dot && p_.metric != Metric::rbf;
    x_.emplace(p_.x, p_.M, packing_x(), threads_);
    if (!is_symmetric) y_.emplace(p_.y, p_.N, packing_y(), threads_);
    const BadRows bad{x_->bad_row(), is_symmetric ? -1 : y_->bad_row()};
    if (bad.x >= 0 || bad.y >= 0 || p_.k == 0) return bad;
    is_symmetric ? symmetric() : rectangular();
    return bad;
  }

 private:
  static const std::vector<int32_t>* every_row() { return nullptr; }

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
      for (int64_t r = 0; r < lists.last - lists.first; ++r) finish(lists, r, w, every_row);
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
      for (int64_t row = panel * PANEL; row < std::min(p_.M, (panel + 1) * PANEL); ++row)
        finish(lists, row, w, every_row);
    });
  }

  std::optional<PackedRows> x_, y_;
};

}  // namespace

BadRows neighbors(const NeighborsProblem& problem, const NeighborsResult& result, int threads) {
  if (problem.precision == Precision::float32) return Search<float>(problem, result, threads).run();
  return Search<int32_t>(problem, result, threads).run();
}

}  // namespace mrt
