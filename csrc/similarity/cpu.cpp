// similarity on the CPU: who computes which tiles, forward.
//
// A group that one thread can do in a millisecond or two is packed and multiplied by it alone, in its cache. A larger
// one is packed by everybody and cut into blocks, of a matrix with itself only those on and above the diagonal.
// Memory  4 D (ceil16(M) + ceil16(N)) bytes of packed rows: of the largest group, and per thread of its largest group;
//         400 D more per thread.
#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "common/memory.h"
#include "common/parallel.h"
#include "similarity/groups.h"
#include "similarity/similarity_kernels.h"
#include "tile/blocks.h"
#include "tile/first_bad_row.h"
#include "tile/tile_kernels.h"

namespace mrt {

namespace {

// A result of this many bytes does not stay in any cache, and reading it in order to write it is waste.
constexpr int64_t STREAMED_BYTES = 64 << 20;

class Forward {
 public:
  Forward(const SimilarityProblem& problem, void* s, int threads)
      : p_(problem), s_(s), threads_(threads), groups_(problem, threads), kernel_(similarity_kernels()) {}

  BadFeatures run() {
    const int64_t bytes = groups_.num_cells() * element_size(p_.x.first.dtype);
    advise_huge_pages(s_, bytes);
    is_streamed_ = p_.x.first.dtype == DType::float32 && bytes >= STREAMED_BYTES;
    workspaces_.resize(std::max(threads_, 1));
    parallel_for(p_.B, groups_.grain(), threads_, [&](Worker& worker, int64_t b) {
      if (!groups_.is_shared(b)) alone(groups_.at(b), worker);
    });
    for (const int64_t b : groups_.shared()) together(groups_.at(b));
    return {bad_x_.row(), bad_y_.row()};
  }

 private:
  struct Workspace {
    Buffer buffer;
    float *converted, *rows;
    Unit *staged, *x, *y;
  };

  size_t carve(Arena arena, Workspace& w) const {
    const int64_t D = p_.x.first.columns, wide = round_up(D, PANEL);
    w.converted = arena.take<float>(PANEL * D);
    w.staged = arena.take<Unit>(PANEL * wide);
    w.rows = arena.take<float>((DIRECT_ROWS + 1) * wide);
    w.x = arena.take<Unit>(round_up(groups_.largest_alone().M, PANEL) * D);
    w.y = arena.take<Unit>(p_.is_self ? 0 : round_up(groups_.largest_alone().N, PANEL) * D);
    return arena.used();
  }

  Workspace& workspace(int index) {
    Workspace& w = workspaces_[index];
    if (w.buffer.size() == 0) {
      Workspace sizes;
      w.buffer = Buffer(carve(Arena(), sizes) + 1);
      carve(Arena(w.buffer.data()), w);
      std::memset(w.staged, 0, reinterpret_cast<char*>(w.x) - reinterpret_cast<char*>(w.staged));
    }
    return w;
  }

  ScoreMatrix scores(const Group& g) const {
    char* const s = static_cast<char*>(s_) + g.cell * element_size(g.x.dtype);
    const bool is_aligned = g.N % PANEL == 0 && reinterpret_cast<uintptr_t>(s) % CACHE_LINE == 0;
    return {s, g.x.dtype, g.M, g.N, p_.metric, p_.gamma, p_.is_self, is_streamed_ && is_aligned};
  }

  void alone(const Group& g, Worker& worker) {
    Workspace& w = workspace(worker.index());
    const int64_t D = g.x.columns;
    const bool is_direct = p_.is_self && g.M <= DIRECT_ROWS && D >= DIRECT_FEATURES && p_.metric != Metric::rbf;
    if (is_direct && kernel_.direct_similarities(g.x, w.rows, scores(g))) return;
    const int64_t bad = tile_kernels().pack_floats({is_normalised(p_.metric)}, g.x, 0, g.M, w.converted, w.staged, w.x);
    if (bad_x_.report(bad < 0 ? bad : g.first_x + bad)) return;
    if (!p_.is_self) {
      const int64_t other =
          tile_kernels().pack_floats({is_normalised(p_.metric)}, g.y, 0, g.N, w.converted, w.staged, w.y);
      if (bad_y_.report(other < 0 ? other : g.first_y + other)) return;
    }
    const Unit* const y = p_.is_self ? w.x : w.y;
    const int64_t rows = num_panels(g.M), columns = num_panels(g.N);
    for (int64_t r = 0; r < rows; r += LARGEST_BLOCK) {
      for (int64_t c = p_.is_self ? r : 0; c < columns; c += LARGEST_BLOCK)
        kernel_.similarities({w.x, r, std::min(r + LARGEST_BLOCK, rows)}, {y, c, std::min(c + LARGEST_BLOCK, columns)},
                             D, scores(g));
      worker.checkpoint();
    }
  }

  void together(const Group& g) {
    const Packing packing{{0.0}, {is_normalised(p_.metric)}};
    const PackedRows x(g.x, g.M, packing, threads_);
    if (bad_x_.report(x.bad_row() < 0 ? -1 : g.first_x + x.bad_row())) return;
    std::optional<PackedRows> other;
    if (!p_.is_self) {
      other.emplace(g.y, g.N, packing, threads_);
      if (bad_y_.report(other->bad_row() < 0 ? -1 : g.first_y + other->bad_row())) return;
    }
    const PackedRows& y = p_.is_self ? x : *other;
    const int64_t D = g.x.columns, block_x = block_panels(g.M, D, threads_), block_y = block_panels(g.N, D, threads_);
    const int64_t rows = (num_panels(g.M) + block_x - 1) / block_x, columns = (num_panels(g.N) + block_y - 1) / block_y;
    const ScoreMatrix to = scores(g);
    parallel_for(p_.is_self ? rows * (rows + 1) / 2 : rows * columns, 1, threads_, [&](Worker&, int64_t item) {
      const BlockPair pair = p_.is_self ? block_pair(item) : BlockPair{item / columns, item % columns};
      const int64_t r = pair.row * block_x, c = pair.column * block_y;
      kernel_.similarities(x.panels(r, std::min(r + block_x, num_panels(g.M))),
                           y.panels(c, std::min(c + block_y, num_panels(g.N))), D, to);
    });
  }

  const SimilarityProblem& p_;
  void* const s_;
  const int threads_;
  const Groups groups_;
  const SimilarityKernels& kernel_;
  bool is_streamed_ = false;
  std::vector<Workspace> workspaces_;
  FirstBadRow bad_x_, bad_y_;
};

}  // namespace

BadFeatures similarity(const SimilarityProblem& problem, void* s, int threads) {
  return Forward(problem, s, threads).run();
}

}  // namespace mrt
