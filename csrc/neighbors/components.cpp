// Connected components of the graph of pairs whose cosine reaches a threshold, without the graph.
//
// Idea    every tile above the diagonal once; a pair whose integer product is within E of the threshold (neighbors/cpu.cpp
//         derives E) is decided in float64, and only if its rows are not connected already.
//         Of a small group every pair is decided in float64: packing it would take longer.
// Sums    components are a set: any order of the pairs gives the same labels.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "common/interrupt.h"
#include "common/parallel.h"
#include "neighbors/neighbors_kernels.h"
#include "tile/blocks.h"
#include "tile/panels.h"
#include "tile/tile_kernels.h"

namespace mrt {

namespace {

// A forest whose roots are the lowest rows of their trees. Threads join trees without locks: a root is given a parent
// by compare-and-swap, and shortening a path only ever replaces a parent by an ancestor.
class Forest {
 public:
  explicit Forest(int64_t N) : parents_(N) {
    for (int64_t i = 0; i < N; ++i) parents_[i].store(i, std::memory_order_relaxed);
  }
  int64_t root(int64_t i) {
    for (;;) {
      const int64_t parent = parents_[i].load(std::memory_order_relaxed);
      if (parent == i) return i;
      const int64_t above = parents_[parent].load(std::memory_order_relaxed);
      if (above == parent) return parent;
      parents_[i].store(above, std::memory_order_relaxed);
      i = above;
    }
  }
  void join(int64_t i, int64_t j) {
    for (;;) {
      int64_t low = root(i), high = root(j);
      if (low == high) return;
      if (low > high) std::swap(low, high);
      if (parents_[high].compare_exchange_strong(high, low)) return;
    }
  }

 private:
  std::vector<std::atomic<int64_t>> parents_;
};

// What one thread needs to decide a pair.
struct Judge {
  const Features& x;
  const std::vector<double>& squares;
  const TileKernels& kernel;
  const double threshold;
  const int32_t certain;  // products from here on reach the threshold
  Forest& forest;
  std::vector<float> converted;
  std::vector<double> row, wide;
  int64_t loaded = -1;

  void pair(int64_t i, int64_t j, int32_t product) {
    if (forest.root(i) == forest.root(j)) return;
    if (product >= certain || cosine(i, j) >= threshold) forest.join(i, j);
  }

  double cosine(int64_t i, int64_t j) {
    if (loaded != i) kernel.wide_row(x, i, converted.data(), row.data());
    loaded = i;
    const int32_t id = static_cast<int32_t>(j);
    double dot;
    kernel.exact_dots(row.data(), x, &id, 1, converted.data(), wide.data(), &dot);
    return cosine_of(dot, squares[i], squares[j]);
  }
};

}  // namespace

int64_t components(const Features& x, int64_t N, double threshold, double radius, int64_t* labels, int threads) {
  const NeighborsKernels& kernel = neighbors_kernels();
  const PackedRows rows(x, N, {{radius, false}, {}}, threads);
  if (rows.bad_row() >= 0) return rows.bad_row();
  const std::vector<double> squares = row_squares(x, N, threads);
  const double square = radius * radius, error = product_error(radius, x.columns);
  const int32_t lowest = static_cast<int32_t>(std::floor(threshold * square - error));
  const int32_t certain = static_cast<int32_t>(std::ceil(threshold * square + error));
  Forest forest(N);
  std::vector<Judge> judges(std::max(threads, 1),
                            Judge{x, squares, tile_kernels(), threshold, certain, forest, {}, {}, {}});
  const int64_t P = num_panels(N), block = block_panels(N, rows.U(), threads), B = (P + block - 1) / block;
  const ProgressRange whole(0.0, 1.0);
  parallel_for(B * (B + 1) / 2, 1, threads, [&](Worker& worker, int64_t item) {
    Judge& judge = judges[worker.index()];
    for (std::vector<double>* array : {&judge.row, &judge.wide}) array->resize(x.columns);
    judge.converted.resize(x.columns);
    const BlockPair pair = block_pair(item);
    const auto found = [](void* context, int64_t i, int64_t j, int32_t product) {
      static_cast<Judge*>(context)->pair(i, j, product);
    };
    kernel.connect(rows.panels(pair.row * block, std::min(P, (pair.row + 1) * block)),
                   rows.panels(pair.column * block, std::min(P, (pair.column + 1) * block)), rows.U(), N, lowest, found,
                   &judge);
  });
  for (int64_t i = 0; i < N; ++i) labels[i] = forest.root(i);
  return -1;
}

namespace {

constexpr int64_t SMALL_GROUP = 128;  // rows
constexpr int64_t GROUPS_AT_ONCE = 16;

Features rows_from(const Features& x, int64_t first) {
  Features part = x;
  part.data = static_cast<const char*>(x.data) + first * x.row_stride * element_size(x.dtype);
  return part;
}

// What one thread needs for small groups.
struct SmallGroups {
  const Features& x;
  const std::vector<double>& squares;
  const TileKernels& kernel;
  const double threshold;
  std::vector<float> converted;
  std::vector<double> row, wide;

  // Rows first … last - 1: every row meets those behind it; whoever is linked takes the lower label of the two chains.
  void link(int64_t first, int64_t last, int64_t* labels) {
    int32_t ids[SMALL_GROUP];
    double dots[SMALL_GROUP];
    for (int64_t i = first; i < last; ++i) labels[i] = i;
    const auto root = [&](int64_t i) {
      while (labels[i] != i) i = labels[i];
      return i;
    };
    const Features group = rows_from(x, first);
    for (int64_t i = first; i + 1 < last; ++i) {
      const int64_t behind = last - i - 1;
      for (int64_t n = 0; n < behind; ++n) ids[n] = static_cast<int32_t>(i - first + 1 + n);
      kernel.wide_row(group, i - first, converted.data(), row.data());
      kernel.exact_dots(row.data(), group, ids, behind, converted.data(), wide.data(), dots);
      for (int64_t n = 0; n < behind; ++n) {
        const int64_t j = i + 1 + n;
        if (cosine_of(dots[n], squares[i], squares[j]) < threshold) continue;
        const int64_t a = root(i), b = root(j);
        labels[std::max(a, b)] = std::min(a, b);
      }
    }
    for (int64_t i = first; i < last; ++i) labels[i] = root(i);
  }
};

}  // namespace

int64_t components_of_groups(const Features& x, const int64_t* offsets, int64_t num_groups, double threshold,
                             double radius, int64_t* labels, int threads) {
  const std::vector<double> squares = row_squares(x, offsets[num_groups], threads);
  for (int64_t i = 0; i < offsets[num_groups]; ++i)
    if (!std::isfinite(squares[i])) return i;
  std::vector<SmallGroups> workers(std::max(threads, 1),
                                   SmallGroups{x, squares, tile_kernels(), threshold, {}, {}, {}});
  parallel_for(num_groups, GROUPS_AT_ONCE, threads, [&](Worker& worker, int64_t b) {
    if (offsets[b + 1] - offsets[b] > SMALL_GROUP) return;
    SmallGroups& mine = workers[worker.index()];
    for (std::vector<double>* array : {&mine.row, &mine.wide}) array->resize(x.columns);
    mine.converted.resize(x.columns);
    mine.link(offsets[b], offsets[b + 1], labels);
  });
  for (int64_t b = 0; b < num_groups; ++b) {
    const int64_t first = offsets[b], rows = offsets[b + 1] - first;
    if (rows <= SMALL_GROUP) continue;
    components(rows_from(x, first), rows, threshold, radius, labels + first, threads);
    for (int64_t i = first; i < first + rows; ++i) labels[i] += first;
  }
  return -1;
}

}  // namespace mrt
