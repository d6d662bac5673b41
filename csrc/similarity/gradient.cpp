// The gradient of similarity on the CPU: who pulls which rows.
//
// A block of rows receives from all others, 256 at a time, in order; blocks are independent of one another. Small groups
// belong to one thread each, the blocks of a large one to everybody.
// Memory  4 D ceil16(N) bytes for the others as panels of features and, for metrics whose slope depends on the score,
//         4 D (ceil16(M) + ceil16(N)) for packed rows: of the largest group, and per thread of its largest group;
//         700 D + 135,000 more per thread.
#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "common/memory.h"
#include "common/parallel.h"
#include "similarity/groups.h"
#include "similarity/similarity_kernels.h"
#include "tile/tile_kernels.h"

namespace mrt {

namespace {

constexpr int64_t ROWS = 128;    // rows of a block: their slopes to 256 others take 128 KiB of a second-level cache
constexpr int64_t OTHERS = 256;  // two panels of 16 features of them take 32 KiB of a first-level cache

// One direction: `rows` get a gradient from `others`.
struct Side {
  Features rows, others;
  int64_t M, N;
  const char* grad;
  int64_t stride;
  bool by_row, by_column;
  char* out;  // row 0 of the group
};

struct Workspace {
  Buffer buffer;
  float *converted, *features, *slopes, *pulled;
  double* sums;
  Unit *staged, *rows, *others;
};

class Backward {
 public:
  Backward(const SimilarityProblem& problem, const void* grad, int threads)
      : p_(problem),
        grad_(static_cast<const char*>(grad)),
        threads_(threads),
        groups_(problem, threads),
        kernel_(similarity_kernels()),
        D_(problem.x.first.columns),
        workspaces_(std::max(threads, 1)) {}

  void run(bool is_of_x, void* out) {
    advise_huge_pages(out, total_rows(is_of_x) * D_ * element_size(p_.x.first.dtype));
    parallel_for(p_.B, groups_.grain(), threads_, [&](Worker& worker, int64_t b) {
      if (!groups_.is_shared(b)) alone(side(groups_.at(b), is_of_x, out), worker);
    });
    for (const int64_t b : groups_.shared()) together(side(groups_.at(b), is_of_x, out));
  }

 private:
  int64_t total_rows(bool is_of_x) const {
    return p_.offsets != nullptr ? p_.offsets[p_.B] : p_.B * (is_of_x ? p_.x : p_.y).rows_per_group;
  }

  Side side(const Group& g, bool is_of_x, void* out) const {
    const int64_t size = element_size(g.x.dtype);
    const char* const grad = grad_ + g.cell * size;
    char* const rows = static_cast<char*>(out) + (is_of_x ? g.first_x : g.first_y) * D_ * size;
    if (is_of_x) return {g.x, g.y, g.M, g.N, grad, g.N, true, p_.is_self, rows};
    return {g.y, g.x, g.N, g.M, grad, g.N, false, true, rows};
  }

  // What a thread needs for blocks of rows, and for the largest group that it does alone.
  size_t carve(Arena arena, Workspace& w) const {
    const int64_t wide = round_up(D_, PANEL), M = groups_.largest_alone().M, N = groups_.largest_alone().N;
    const int64_t rows = round_up(std::max(M, N), PANEL), packed = has_slope(p_.metric) ? rows * D_ : 0;
    w.converted = arena.take<float>(PANEL * wide);
    w.staged = arena.take<Unit>(PANEL * wide);
    w.slopes = arena.take<float>(ROWS * OTHERS);
    w.sums = arena.take<double>(ROWS);
    w.pulled = arena.take<float>(ROWS * wide);
    w.features = arena.take<float>(rows * wide);
    w.rows = arena.take<Unit>(packed);
    w.others = arena.take<Unit>(p_.is_self ? 0 : packed);
    return arena.used();
  }

  Workspace& workspace(const Worker& worker) {
    Workspace& w = workspaces_[worker.index()];
    if (w.buffer.size() == 0) {
      Workspace sizes;
      w.buffer = Buffer(carve(Arena(), sizes) + 1);
      carve(Arena(w.buffer.data()), w);
      std::memset(w.staged, 0, PANEL * round_up(D_, PANEL) * sizeof(Unit));
    }
    return w;
  }

  void pack_others(const Side& side, int64_t first, float* scratch, float* features) const {
    kernel_.pack_features(side.others, first, std::min(OTHERS, side.N - first), is_normalised(p_.metric), scratch,
                          features + first * round_up(D_, PANEL));
  }

  void alone(const Side& side, Worker& worker) {
    Workspace& w = workspace(worker);
    for (int64_t n = 0; n < side.N; n += OTHERS) pack_others(side, n, w.converted, w.features);
    const Unit *rows = nullptr, *others = nullptr;
    if (has_slope(p_.metric)) {
      const bool normalise = is_normalised(p_.metric);
      tile_kernels().pack_floats({normalise}, side.rows, 0, side.M, w.converted, w.staged, w.rows);
      if (!p_.is_self) tile_kernels().pack_floats({normalise}, side.others, 0, side.N, w.converted, w.staged, w.others);
      rows = w.rows;
      others = p_.is_self ? w.rows : w.others;
    }
    for (int64_t r = 0; r < side.M; r += ROWS) block(side, r, w.features, rows, others, worker);
  }

  void together(const Side& side) {
    Buffer features(side.N * round_up(D_, PANEL) * sizeof(float) + 1);
    float* const packed = reinterpret_cast<float*>(features.data());
    parallel_for((side.N + OTHERS - 1) / OTHERS, 1, threads_, [&](Worker& worker, int64_t n) {
      pack_others(side, n * OTHERS, workspace(worker).converted, packed);
    });
    std::optional<PackedRows> rows, others;
    if (has_slope(p_.metric)) {
      const Packing packing{{0.0}, {is_normalised(p_.metric)}};
      rows.emplace(side.rows, side.M, packing, threads_);
      if (!p_.is_self) others.emplace(side.others, side.N, packing, threads_);
    }
    const auto units = [](const std::optional<PackedRows>& m) { return m ? m->panels(0, 0).units : nullptr; };
    parallel_for((side.M + ROWS - 1) / ROWS, 1, threads_, [&](Worker& worker, int64_t r) {
      block(side, r * ROWS, packed, units(rows), units(p_.is_self ? rows : others), worker);
    });
  }

  // The gradient of the rows from row0.
  void block(const Side& side, int64_t row0, const float* features, const Unit* rows, const Unit* others,
             Worker& worker) {
    Workspace& w = workspace(worker);
    Pull pull{};
    pull.metric = p_.metric;
    pull.gamma = p_.gamma;
    pull.D = D_;
    pull.row0 = row0;
    pull.rows = std::min(ROWS, side.M - row0);
    pull.grad = side.grad;
    pull.dtype = side.rows.dtype;
    pull.stride = side.stride;
    pull.by_row = side.by_row;
    pull.by_column = side.by_column;
    pull.row_panels = rows;
    pull.other_panels = others;
    pull.slopes = w.slopes;
    pull.pulled = w.pulled;
    pull.sums = w.sums;
    std::memset(w.sums, 0, ROWS * sizeof *w.sums);
    std::memset(w.pulled, 0, round_up(pull.rows, PANEL) * round_up(D_, PANEL) * sizeof *w.pulled);
    for (; pull.other0 < side.N; pull.other0 += OTHERS) {
      pull.count = std::min(OTHERS, side.N - pull.other0);
      pull.features = features + pull.other0 * round_up(D_, PANEL);
      kernel_.pull(pull);
      worker.checkpoint();
    }
    kernel_.finish_gradient(pull, side.rows, w.converted, side.out);
  }

  const SimilarityProblem& p_;
  const char* const grad_;
  const int threads_;
  const Groups groups_;
  const SimilarityKernels& kernel_;
  const int64_t D_;
  std::vector<Workspace> workspaces_;
};

}  // namespace

void similarity_gradient(const SimilarityProblem& problem, const void* grad, void* dx, void* dy, int threads) {
  Backward backward(problem, grad, threads);
  if (dx != nullptr) backward.run(true, dx);
  if (dy != nullptr) backward.run(false, dy);
}

}  // namespace mrt
