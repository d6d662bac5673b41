// facility_location per group on the CPU: pack, multiply, round, pick, in the cache for groups of up to 256 rows.
//
// Idea    one thread owns a group from its raw features to its picks; the pair table is made tile by tile, and
//         again with unit weights, in place, when the weighted one has served.
// Memory  per thread: 2 ceil32(N) ceil2(D) packed rows, 2 N ceil32(N) pairs, 96 D staging, 90 ceil32(N) more.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include "common/memory.h"
#include "common/parallel.h"
#include "facility_location/facility_location_kernels.h"
#include "facility_location/greedy.h"
#include "tile/first_bad_row.h"
#include "tile/tile_kernels.h"

namespace mrt {

namespace {

constexpr int64_t STRIDE = 32;  // pairs per 512-bit register

struct Workspace {
  Buffer buffer;
  float *converted, *unit, *quality;
  Unit *staged, *panels;
  uint16_t *t, *best;
  int32_t *owned, *ids, *order, *owner;
  int64_t *bonus, *open, *gains, *keys;
  GreedyScratch greedy;
};

size_t carve(Arena arena, int64_t N, int64_t D, Workspace& w) {
  const int64_t U = (D + 1) / 2, rows = round_up(N, STRIDE);
  w.converted = arena.take<float>(PANEL * D);
  w.staged = arena.take<Unit>(PANEL * round_up(U, PANEL));
  w.panels = arena.take<Unit>(rows * U);
  w.t = arena.take<uint16_t>(N * rows);
  w.best = arena.take<uint16_t>(rows);
  for (float** array : {&w.unit, &w.quality}) *array = arena.take<float>(rows);
  for (int32_t** array : {&w.owned, &w.ids, &w.owner, &w.greedy.refreshed}) *array = arena.take<int32_t>(rows);
  w.order = arena.take<int32_t>(2 * rows);  // cyclic windows reach beyond the end
  for (int64_t** array : {&w.bonus, &w.open, &w.gains, &w.keys, &w.greedy.bounds, &w.greedy.sorted})
    *array = arena.take<int64_t>(rows);
  return arena.used();
}

// The oracle of the greedy loop: one group's pair table.
class Grouped {
 public:
  Grouped(const FacilityLocationKernels& kernel, const PairTable& table, const int64_t* bonus, uint16_t* best,
          int64_t* open)
      : kernel_(kernel), table_(table), bonus_(bonus), best_(best), open_(open) {}
  void gains(int64_t* out) const { kernel_.gains(table_, best_, bonus_, open_, out); }
  int64_t gain(int64_t j) const { return open_[j] == 0 ? -1 : kernel_.gain(table_, best_, j) + bonus_[j]; }
  int64_t largest(const int64_t* values) const { return kernel_.largest(values, table_.N); }
  int64_t sum_of_largest(const int64_t* values, int64_t k, int64_t* scratch) const {
    if (table_.N <= COUNTED_ROWS) return kernel_.sum_of_largest(values, table_.N, k);
    std::copy(values, values + table_.N, scratch);
    if (k < table_.N) std::nth_element(scratch, scratch + k, scratch + table_.N, std::greater<int64_t>());
    int64_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += std::max<int64_t>(scratch[i], 0);
    return sum;
  }
  void take(int64_t j) {
    kernel_.take(table_, j, best_);
    open_[j] = 0;
  }

 private:
  const FacilityLocationKernels& kernel_;
  const PairTable& table_;
  const int64_t* bonus_;
  uint16_t* best_;
  int64_t* open_;
};

// One group, from features to picks.
class Group {
 public:
  Group(const SelectionProblem& p, const SelectionResult& r, const FacilityLocationKernels& kernel, Worker& worker,
        Workspace& w, int64_t b, int64_t slot)
      : p_(p), r_(r), kernel_(kernel), worker_(worker), w_(w), b_(b), slot_(slot), first_(p.offsets[b]), k_(p.k[b]) {
    table_.N = p.offsets[b + 1] - first_;
    table_.stride = round_up(table_.N, STRIDE);
    table_.t = w.t;
    one_ = static_cast<int64_t>(std::nearbyint(p.radius * p.radius));
  }

  // Returns the first bad row or -1.
  int64_t select() {
    const int64_t N = table_.N;
    const int64_t bad = tile_kernels().pack_lattice({p_.radius}, p_.x, first_, N, w_.converted, w_.staged, w_.panels);
    if (bad >= 0) return bad;
    const bool is_plain = p_.weight == nullptr && p_.quality == nullptr;
    const double largest = maximum();
    make_pairs(p_.weight, p_.quality, largest);
    std::fill(w_.bonus, w_.bonus + N, int64_t{0});
    if (p_.bonus != nullptr)
      for (int64_t j = 0; j < N; ++j)
        w_.bonus[j] = std::llrint(static_cast<double>(p_.bonus[first_ + j]) * STEPS / largest);
    std::memset(w_.best, 0, table_.stride * sizeof *w_.best);
    std::fill(w_.open, w_.open + N, int64_t{-1});
    if (p_.given != nullptr)
      for (int64_t i = 0; i < k_; ++i) w_.ids[i] = static_cast<int32_t>(p_.given[slot_ + i] - p_.first_row - first_);
    Grouped oracle(kernel_, table_, w_.bonus, w_.best, w_.open);
    const int32_t* given = p_.given == nullptr ? nullptr : w_.ids;
    const GreedyResult found = greedy(oracle, N, k_, given, w_.greedy, w_.ids, w_.gains);
    r_.value[b_] = found.value;
    r_.bound[b_] = found.bound;
    r_.effective[b_] = found.effective;
    r_.random[b_] = random_value();
    if (!is_plain) make_pairs(nullptr, nullptr, 1.0);
    const int64_t kept = fill(found.picks);
    write(kept);
    return -1;
  }

 private:
  double maximum() const {
    double w = 1.0, a = 1.0;
    if (p_.weight != nullptr && table_.N > 0) w = *std::max_element(p_.weight + first_, p_.weight + first_ + table_.N);
    if (p_.quality != nullptr && table_.N > 0)
      a = *std::max_element(p_.quality + first_, p_.quality + first_ + table_.N);
    return w * a > 0 ? w * a : 1.0;
  }

  void make_pairs(const float* weight, const float* quality, double largest) {
    const bool is_shifted = p_.metric == Metric::shifted_cosine;
    const double scale = is_shifted ? 2.0 * static_cast<double>(one_) : static_cast<double>(one_);
    for (int64_t i = 0; i < table_.stride; ++i) {
      const double w = i >= table_.N ? 0.0 : weight == nullptr ? 1.0 : weight[first_ + i];
      w_.unit[i] = static_cast<float>(w * STEPS / (scale * largest));
      w_.quality[i] = i < table_.N && quality != nullptr ? quality[first_ + i] : 1.0f;
    }
    const int64_t U = (p_.x.columns + 1) / 2;
    // tiles reach to a multiple of 16 columns; the rest of a row is padding
    if (table_.stride - round_up(table_.N, PANEL) > 0)
      for (int64_t j = 0; j < table_.N; ++j)
        std::memset(table_.t + (j + 1) * table_.stride - PANEL, 0, PANEL * sizeof *table_.t);
    for (int64_t panel = 0; panel < num_panels(table_.N); ++panel) {
      kernel_.pairs(w_.panels, U, panel, static_cast<int32_t>(is_shifted ? one_ : 0), w_.unit, w_.quality, table_);
      if (table_.N > EAGER_ROWS) worker_.checkpoint();
    }
  }

  // All positions in the random order of draw `number`, in w_.order.
  void shuffle(uint64_t number) {
    kernel_.rank_keys(p_.seed, number, static_cast<uint64_t>(p_.group_key[b_]), table_.N, w_.keys);
    if (table_.N <= COUNTED_ROWS) {
      kernel_.sort_by_key(w_.keys, table_.N, w_.order);
      return;
    }
    for (int64_t i = 0; i < table_.N; ++i) w_.order[i] = static_cast<int32_t>(i);
    std::sort(w_.order, w_.order + table_.N, [this](int32_t i, int32_t j) { return w_.keys[i] < w_.keys[j]; });
  }

  // Windows of one random order (cyclic): each of them is a uniform draw of k rows.
  int64_t random_value() {
    if (k_ == 0) return 0;
    const int64_t N = table_.N;
    shuffle(CHANCE);
    std::copy(w_.order, w_.order + k_, w_.order + N);
    int64_t total = 0;
    for (int r = 0; r < RANDOM_DRAWS; ++r) {
      const int32_t* const draw = w_.order + r * N / RANDOM_DRAWS;
      total += kernel_.cover(table_, draw, k_);
      for (int64_t i = 0; i < k_ && p_.bonus != nullptr; ++i) total += w_.bonus[draw[i]];
    }
    return total;
  }

  // What follows the picks once no candidate gains; the table holds plain pairs by now. Returns how many ids there are.
  int64_t fill(int64_t kept) {
    if (kept == k_ || p_.fill == Fill::none) return kept;
    std::fill(w_.gains + kept, w_.gains + k_, int64_t{0});
    if (p_.fill == Fill::coverage) {
      std::memset(w_.best, 0, table_.stride * sizeof *w_.best);
      for (int64_t i = 0; i < kept; ++i) kernel_.take(table_, w_.ids[i], w_.best);
      std::fill(w_.bonus, w_.bonus + table_.N, int64_t{0});
      Grouped oracle(kernel_, table_, w_.bonus, w_.best, w_.open);
      kept += greedy(oracle, table_.N, k_ - kept, nullptr, w_.greedy, w_.ids + kept, w_.keys).picks;
    }
    if (p_.fill == Fill::index) {
      std::iota(w_.order, w_.order + table_.N, 0);
    } else {
      shuffle(KEPT);
    }
    for (const int32_t* j = w_.order; kept < k_; ++j)
      if (w_.open[*j] != 0) w_.ids[kept++] = *j;
    return k_;
  }

  void write(int64_t kept) {
    const int64_t N = table_.N, base = p_.first_row + first_;
    std::copy(w_.ids, w_.ids + kept, w_.order);
    std::sort(w_.order, w_.order + kept);
    kernel_.owners(table_, w_.order, kept, w_.best, w_.owner);
    for (int64_t i = 0; i < kept; ++i) w_.owner[w_.ids[i]] = w_.ids[i];
    int32_t* const owned = w_.owned;
    std::fill(owned, owned + N, 0);
    for (int64_t i = 0; i < N; ++i) {
      const int32_t owner = w_.owner[i];
      r_.owner[first_ + i] = owner < 0 ? -1 : base + owner;
      if (owner >= 0) ++owned[owner];
    }
    for (int64_t i = 0; i < kept; ++i) {
      r_.ids[slot_ + i] = base + w_.ids[i];
      r_.gains[slot_ + i] = w_.gains[i];
      r_.share[slot_ + i] = static_cast<float>(static_cast<double>(owned[w_.ids[i]]) / static_cast<double>(N));
    }
    r_.kept[b_] = kept;
  }

  const SelectionProblem& p_;
  const SelectionResult& r_;
  const FacilityLocationKernels& kernel_;
  Worker& worker_;
  Workspace& w_;
  const int64_t b_, slot_, first_, k_;
  int64_t one_;
  PairTable table_;
};

}  // namespace

int64_t select_groups(const SelectionProblem& problem, const SelectionResult& result, int threads) {
  const FacilityLocationKernels& kernel = facility_location_kernels();
  int64_t largest = 0;
  std::vector<int64_t> slots(problem.num_groups + 1, 0);
  for (int64_t b = 0; b < problem.num_groups; ++b) {
    largest = std::max(largest, problem.offsets[b + 1] - problem.offsets[b]);
    slots[b + 1] = slots[b] + problem.k[b];
  }
  const int64_t D = problem.x.columns;
  std::vector<Workspace> workspaces(std::max(threads, 1));
  FirstBadRow bad;
  const int64_t grain = largest <= STRIDE ? 16 : 1;
  parallel_for(problem.num_groups, grain, threads, [&](Worker& worker, int64_t b) {
    Workspace& w = workspaces[worker.index()];
    if (w.buffer.size() == 0) {
      Workspace sizes;
      w.buffer = Buffer(carve(Arena(), largest, D, sizes) + 1);
      carve(Arena(w.buffer.data()), largest, D, w);
      std::memset(w.staged, 0, PANEL * round_up((D + 1) / 2, PANEL) * sizeof(Unit));
    }
    bad.report(Group(problem, result, kernel, worker, w, b, slots[b]).select());
  });
  return bad.row();
}

}  // namespace mrt
