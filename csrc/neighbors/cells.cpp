// neighbors among the members of some cells on the CPU: every row meets the members of the cells that it probes.
//
// Idea    y is packed cell after cell, each from a panel of its own. Rows whose nearest cell is the same probe much the
//         same cells: a block of them is packed once, and for every cell that any of them probes, those that do are
//         picked into panels and multiplied with its members. A pair that no row asks for costs nothing, but padding.
// Lists   belong to the block, so neither locks nor lists of all rows are needed; all else is neighbors/answers.h.
// Memory  packed y 4 U (N + 16 C), 4 bytes for each place, 8 per squared length, 4 per row of x; per thread two blocks of
//         packed rows, their lists, 8 bytes per row of a block and probe, and the members of a row's cells where zeros
//         can be neighbours.
#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "common/interrupt.h"
#include "neighbors/answers.h"

namespace mrt {

namespace {

constexpr int LIST_BITS = 16;  // of a meeting, the number of the list
constexpr int64_t LIST_NUMBERS = int64_t{1} << LIST_BITS;
static_assert(LARGEST_BLOCK * PANEL < LIST_NUMBERS, "a block's lists have numbers");

// Items by the cell each belongs to, ascending within: those of cell c are order[begins[c] … begins[c + 1] - 1].
struct Sorted {
  std::vector<int32_t> order;
  std::vector<int64_t> begins;

  // The cell of item i is cell[i * stride].
  Sorted(const int64_t* cell, int64_t stride, int64_t count, int64_t cells) : order(count), begins(cells + 1) {
    for (int64_t i = 0; i < count; ++i) ++begins[cell[i * stride] + 1];
    for (int64_t c = 0; c < cells; ++c) begins[c + 1] += begins[c];
    std::vector<int64_t> next(begins.begin(), begins.end() - 1);
    for (int64_t i = 0; i < count; ++i) order[next[cell[i * stride]]++] = static_cast<int32_t>(i);
  }
};

// out: the rows of `panels` that are `lanes`, in that order, in panels of their own; beyond them zeros.
void pick(const Unit* panels, int64_t U, const int32_t* lanes, int64_t count, Unit* out) {
  std::fill(out + count / PANEL * PANEL * U, out + num_panels(count) * PANEL * U, 0);
  for (int64_t i = 0; i < count; ++i) {
    const Unit* from = panels + lanes[i] / PANEL * PANEL * U + lanes[i] % PANEL;
    Unit* to = out + i / PANEL * PANEL * U + i % PANEL;
    for (int64_t u = 0; u < U; ++u) to[u * PANEL] = from[u * PANEL];
  }
}

template <class Score>
class CellSearch : Answers<Score> {
  using Base = Answers<Score>;
  using Base::begin, Base::exclusion, Base::finish, Base::open, Base::p_, Base::packing_x, Base::packing_y, Base::scan_,
      Base::threads_, Base::workspace;

 public:
  CellSearch(const NeighborsProblem& problem, const Cells& cells, const NeighborsResult& result, int threads)
      : Base(problem, result, threads), cells_(cells), y_(cells.cell, 1, problem.N, cells.count) {}

  void run() {
    if (p_.M == 0 || p_.k == 0) return;
    place_members();
    packed_.emplace(p_.y, members_, packing_y(), threads_);
    const Sorted x(cells_.probes, cells_.num_probes, p_.M, cells_.count);
    const int64_t most = block_rows();
    struct Block {
      int64_t first, last;  // of x.order
    };
    std::vector<Block> blocks;
    for (int64_t c = 0; c < cells_.count; ++c)
      for (int64_t first = x.begins[c]; first < x.begins[c + 1]; first += most)
        blocks.push_back({first, std::min(x.begins[c + 1], first + most)});
    threads_own_.resize(std::max(threads_, 1));
    const ProgressRange whole(0.0, 1.0);
    parallel_for(static_cast<int64_t>(blocks.size()), 1, threads_, [&](Worker& worker, int64_t item) {
      search(x.order.data(), blocks[item].first, blocks[item].last, worker);
    });
  }

 private:
  // What a thread needs beside the workspace of all searches.
  struct Own {
    std::unique_ptr<RowPacker> packer;
    Buffer block, picked;           // packed rows
    std::vector<int64_t> meetings;  // of a block: cell and list in one number
    std::vector<int32_t> slots, all;
  };

  int64_t block_rows() const {
    return std::clamp<int64_t>(num_panels(p_.M) / (4 * std::max(threads_, 1)), 1, LARGEST_BLOCK) * PANEL;
  }

  // Where each member lies: every cell begins with a panel.
  void place_members() {
    for (int64_t c = 0; c < cells_.count; ++c) {
      places_.push_back(static_cast<int64_t>(members_.size()));
      members_.insert(members_.end(), y_.order.begin() + y_.begins[c], y_.order.begin() + y_.begins[c + 1]);
      members_.resize(round_up(static_cast<int64_t>(members_.size()), PANEL), -1);
    }
  }

  Own& own(const Worker& worker) {
    Own& mine = threads_own_[worker.index()];
    if (mine.packer == nullptr) {
      const size_t bytes = block_rows() * packed_->U() * sizeof(Unit);
      mine.packer = std::make_unique<RowPacker>(p_.x, packing_x());
      mine.block = Buffer(bytes + 1);
      mine.picked = Buffer(bytes + 1);
      mine.slots.resize(block_rows());
    }
    return mine;
  }

  // Rows order[first … last - 1] with the members of all cells that they probe, the cell that they share first: it makes
  // the thresholds high.
  void search(const int32_t* order, int64_t first, int64_t last, Worker& worker) {
    auto& w = workspace(worker);
    Own& mine = own(worker);
    if (w.memory.capacity() == 0) w.memory = ListMemory<Score>(block_rows() + 1, p_.k);
    Lists<Score> lists = begin(w.memory, first, last, order);
    lists.threshold[last - first] = w.memory.never();  // the list of padding
    open(lists, w);
    mine.packer->pack(lists.rows, last - first, reinterpret_cast<Unit*>(mine.block.data()));
    const int64_t shared = cells_.probes[lists.rows[0] * cells_.num_probes];
    mine.meetings.clear();
    for (int64_t r = 0; r < last - first; ++r) {
      const int64_t* const probes = cells_.probes + lists.rows[r] * cells_.num_probes;
      for (int64_t i = 0; i < cells_.num_probes; ++i)
        mine.meetings.push_back((probes[i] == shared ? -1 : probes[i]) * LIST_NUMBERS + r);
    }
    std::sort(mine.meetings.begin(), mine.meetings.end());
    for (size_t i = 0; i < mine.meetings.size();) {
      int64_t count = 0;
      const int64_t number = cell_of(mine.meetings[i]);
      for (; i < mine.meetings.size() && cell_of(mine.meetings[i]) == number; ++i)
        mine.slots[count++] = static_cast<int32_t>(mine.meetings[i] & (LIST_NUMBERS - 1));
      meet(lists, number < 0 ? shared : number, count, mine, worker);
    }
    for (int64_t r = 0; r < last - first; ++r) {
      finish(lists, r, w, [&] { return candidates(lists.row(r), mine.all); });
      worker.checkpoint();
    }
  }

  static int64_t cell_of(int64_t meeting) { return meeting >> LIST_BITS; }

  // The first `count` of mine.slots with the members of a cell.
  void meet(Lists<Score>& lists, int64_t cell, int64_t count, Own& mine, Worker& worker) {
    const int64_t U = packed_->U(), size = y_.begins[cell + 1] - y_.begins[cell], rows = lists.last - lists.first;
    if (size == 0) return;
    const Unit* panels = reinterpret_cast<const Unit*>(mine.block.data());
    if (count < rows) {
      Unit* const picked = reinterpret_cast<Unit*>(mine.picked.data());
      pick(panels, U, mine.slots.data(), count, picked);
      panels = picked;
    }
    std::fill(mine.slots.begin() + count, mine.slots.begin() + round_up(count, PANEL), static_cast<int32_t>(rows));
    const Meeting meeting{mine.slots.data(), members_.data(), places_[cell] + size};
    const int64_t first = places_[cell] / PANEL, last = first + num_panels(size);
    for (int64_t q = first; q < last; q += MOST_COLUMNS) {
      scan_.scan_cell({panels, 0, num_panels(count)}, packed_->panels(q, std::min(last, q + MOST_COLUMNS)), U, lists,
                      exclusion(), meeting);
      worker.checkpoint();
    }
  }

  // Every member of the cells that a row probes, ascending.
  const std::vector<int32_t>* candidates(int64_t row, std::vector<int32_t>& all) const {
    all.clear();
    for (int64_t i = 0; i < cells_.num_probes; ++i) {
      const int64_t cell = cells_.probes[row * cells_.num_probes + i];
      all.insert(all.end(), y_.order.begin() + y_.begins[cell], y_.order.begin() + y_.begins[cell + 1]);
    }
    std::sort(all.begin(), all.end());
    return &all;
  }

  const Cells& cells_;
  const Sorted y_;
  std::vector<int32_t> members_;  // [places] rows of y; -1: padding
  std::vector<int64_t> places_;   // [C] where the members of a cell begin
  std::optional<PackedRows> packed_;
  std::vector<Own> threads_own_;
};

}  // namespace

void neighbors_in_cells(const NeighborsProblem& problem, const Cells& cells, const NeighborsResult& result,
                        int threads) {
  if (problem.precision == Precision::float32) return CellSearch<float>(problem, cells, result, threads).run();
  CellSearch<int32_t>(problem, cells, result, threads).run();
}

}  // namespace mrt
