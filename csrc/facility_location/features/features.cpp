// Facility location from features: bounds without a product, gains by products, gains from lists.
#include "facility_location/features/features.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "common/draws.h"
#include "common/parallel.h"
#include "facility_location/facility_location_kernels.h"
#include "facility_location/features/grid.h"

namespace mrt {

namespace {

// Gains of a batch one by one cost as much as a pass over all pairs once they are this share of the candidates: a pass
// uses both sides of a tile, and its rows are in the cache.
constexpr double REFRESH_SHARE = 0.3;
// Pairs above what is reached, of all pairs, from which on lists are worth their making.
constexpr double MOST_LIVE = 0.05;
constexpr double MARGIN = 1.08;  // the share is of a sample
constexpr int64_t SAMPLED_CANDIDATES = 128, SAMPLED_ROWS = 16'384;
constexpr int64_t TOGETHER = 64;  // candidates whose rows of steps are made at a time
constexpr int64_t MOST_GATHERED = BLOCK_ROWS;

PackedRows packed(const Features& x, int64_t rows, double radius, int threads) {
  return PackedRows(x, rows, Packing{{radius}, {}}, threads);
}

}  // namespace

// Some pairs in steps: how many of them exceed what is reached says how many of all do.
struct FeaturesOracle::Sample {
  std::vector<int32_t> candidates, rows;
  std::vector<uint16_t> t;  // [candidates, rows padded]
};

FeaturesOracle::FeaturesOracle(const LargeProblem& problem)
    : problem_(problem),
      x_(packed(problem.candidates, problem.N, problem.radius, problem.threads)),
      unit_(round_up(problem.M, TABLE_LANES), 0.0f),
      quality_(round_up(problem.N, TABLE_LANES), 1.0f),
      reached_((stride() + TABLE_LANES) * sizeof(uint16_t)) {
  if (!is_self()) y_.emplace(packed(problem.covered, problem.M, problem.radius, problem.threads));
  if (problem.is_ordered && bad_candidate() < 0 && bad_covered() < 0) put_in_order();
  const int64_t one = std::llrint(problem.radius * problem.radius);
  const bool is_shifted = problem.metric == Metric::shifted_cosine;
  const double scale = static_cast<double>(is_shifted ? 2 * one : one) * problem.maximum;
  for (int64_t i = 0; i < problem.M; ++i)
    unit_[i] = static_cast<float>((problem.weight == nullptr ? 1.0 : problem.weight[y_order().id(i)]) * STEPS / scale);
  for (int64_t j = 0; j < problem.N && problem.quality != nullptr; ++j) quality_[j] = problem.quality[x_order_.id(j)];
  rule_ = {static_cast<int32_t>(is_shifted ? one : 0), unit_.data(), quality_.data(), problem.N};
  std::memset(reached_.data(), 0, reached_.size());
}

FeaturesOracle::~FeaturesOracle() = default;

void FeaturesOracle::put_in_order() {
  const Packing packing{{problem_.radius}, {}};
  const int threads = problem_.threads;
  x_order_ = order_by_leaders(x_, problem_.N, y(), problem_.M, threads);
  if (y_) {
    y_order_ = order_by_leaders(*y_, problem_.M, *y_, problem_.M, threads);
    y_.emplace(problem_.covered, y_order_.ids(), packing, threads);
  }
  x_ = PackedRows(problem_.candidates, x_order_.ids(), packing, threads);
}

int64_t FeaturesOracle::refresh_after() const {
  if (lists_ != nullptr) return NEVER;
  return static_cast<int64_t>(REFRESH_SHARE * alive_share_ * static_cast<double>(problem_.N)) + 1;
}

std::unique_ptr<TableOracle> FeaturesOracle::table() {
  auto made = std::make_unique<TableOracle>(problem_.N, problem_.M, problem_.threads);
  const Grid grid(x_, problem_.N, y(), problem_.M);
  LaneSums lanes(problem_.threads);
  const int64_t written = round_up(problem_.M, PANEL);
  parallel_for(grid.size(), 1, problem_.threads, [&](Worker& worker, int64_t item) {
    const BlockPair pair = grid.at(item);
    const GainLanes mine =
        lanes.of(worker.index(), pair.row * BLOCK_ROWS, (grid.is_mirrored() ? pair.column : pair.row) * BLOCK_ROWS);
    facility_location_kernels().pairs_stored(grid.block(pair, nullptr), rule_, made->t(), made->stride(), mine);
    LaneSums::add(mine, problem_.N, made->sums().data());
  });
  for (int64_t j = 0; j < problem_.N; ++j)
    std::fill(made->t() + j * made->stride() + written, made->t() + (j + 1) * made->stride(), uint16_t{0});
  return made;
}

bool FeaturesOracle::bounds(int64_t* out) {
  if (problem_.metric == Metric::shifted_cosine) {
    linear_bounds(out);
    return false;
  }
  all_gains(out);
  return true;
}

// The gain of a first pick is nearly linear in the sum of all rows, each weighed: only roundings, and products below
// -base that count as 0, lie between. No pair is computed.
void FeaturesOracle::linear_bounds(int64_t* bounds) const {
  constexpr double ROUNDING = 0.515;  // of a pair: half a step, and the roundings of its float32 product
  const int64_t N = problem_.N, M = problem_.M, width = U();
  const auto square = [width](const Unit* row) {
    int64_t sum = 0;
    for (int64_t u = 0; u < width; ++u) {
      const int64_t low = static_cast<int16_t>(row[u * PANEL]), high = static_cast<int16_t>(row[u * PANEL] >> 16);
      sum += low * low + high * high;
    }
    return sum;
  };
  const auto at = [width](const PackedRows& rows, int64_t i) {
    return rows.panels(0, 0).units + i / PANEL * width * PANEL + i % PANEL;
  };
  std::vector<double> total(2 * width, 0.0);
  double units = 0.0;
  int64_t largest = 0;
  for (int64_t i = 0; i < M; ++i) {
    const Unit* const row = at(y(), i);
    const double unit = unit_[i];
    units += unit;
    largest = std::max(largest, square(row));
    for (int64_t u = 0; u < width; ++u) {
      total[2 * u] += unit * static_cast<int16_t>(row[u * PANEL]);
      total[2 * u + 1] += unit * static_cast<int16_t>(row[u * PANEL] >> 16);
    }
  }
  const double longest = std::sqrt(static_cast<double>(largest)), base = rule_.base;
  constexpr int64_t GRAIN = 256;
  parallel_for(N, GRAIN, problem_.threads, [&](Worker&, int64_t j) {
    const Unit* const row = at(x_, j);
    double dot = 0.0;
    for (int64_t u = 0; u < width; ++u)
      dot += total[2 * u] * static_cast<int16_t>(row[u * PANEL]) +
             total[2 * u + 1] * static_cast<int16_t>(row[u * PANEL] >> 16);
    const double below = std::max(0.0, std::sqrt(static_cast<double>(square(row))) * longest + 1 - base);
    const double linear = quality_[j] * (dot + (base + below) * units);
    bounds[x_order_.id(j)] = static_cast<int64_t>(std::ceil(linear + ROUNDING * static_cast<double>(M) + 1));
  });
}

void FeaturesOracle::gains(const int32_t* named, int64_t count, int64_t* out) {
  const std::vector<int32_t> positions = x_order_.positions(named, count);
  const int32_t* const ids = positions.data();
  if (lists_ != nullptr) return lists_->gains(ids, count, reached(), out);
  std::fill(out, out + count, int64_t{0});
  for (int64_t first = 0; first < count; first += MOST_GATHERED) {
    const GatheredRows left(x_, quality_, ids + first, std::min(MOST_GATHERED, count - first));
    const PairRule rule{rule_.base, unit_.data(), left.values(), left.count()};
    LaneSums lanes(problem_.threads);
    const Grid grid(x_, problem_.N, y(), problem_.M);
    parallel_for(grid.column_blocks(), 1, problem_.threads, [&](Worker& worker, int64_t slice) {
      PairBlock block = grid.block({0, slice}, nullptr);
      block.rows = left.panels();
      block.is_mirrored = false;
      const GainLanes mine = lanes.of(worker.index(), 0, 0);
      facility_location_kernels().pairs_gained(block, rule, reached(), mine);
      LaneSums::add(mine, left.count(), out + first);
    });
  }
}

void FeaturesOracle::all_gains(int64_t* out) {
  std::vector<int64_t> sums(problem_.N, 0);
  if (lists_ != nullptr) {
    std::vector<int32_t> all(problem_.N);
    std::iota(all.begin(), all.end(), 0);
    lists_->gains(all.data(), problem_.N, reached(), sums.data());
  } else {
    sum_all_gains(sums.data());
  }
  for (int64_t j = 0; j < problem_.N; ++j) out[x_order_.id(j)] = sums[j];
}

void FeaturesOracle::sum_all_gains(int64_t* sums) {
  const Grid grid(x_, problem_.N, y(), problem_.M);
  if (alive_.empty()) alive_.assign(grid.size() * BLOCK_PANELS, ~uint64_t{0});
  LaneSums lanes(problem_.threads);
  std::atomic<int64_t> alive{0}, tiles{0};
  parallel_for(grid.size(), 1, problem_.threads, [&](Worker& worker, int64_t item) {
    const BlockPair pair = grid.at(item);
    uint64_t* const bits = alive_.data() + item * BLOCK_PANELS;
    const PairBlock block = grid.block(pair, bits);
    const GainLanes mine =
        lanes.of(worker.index(), pair.row * BLOCK_ROWS, (grid.is_mirrored() ? pair.column : pair.row) * BLOCK_ROWS);
    facility_location_kernels().pairs_gained(block, rule_, reached(), mine);
    LaneSums::add(mine, problem_.N, sums);
    const int64_t width = block.columns.last - block.columns.first, height = block.rows.last - block.rows.first;
    for (int64_t p = 0; p < height; ++p)
      alive += __builtin_popcountll(bits[p] & (width == BLOCK_PANELS ? ~uint64_t{0} : (uint64_t{1} << width) - 1));
    tiles += width * height;
  });
  alive_share_ = static_cast<double>(alive) / static_cast<double>(std::max<int64_t>(tiles, 1));
}

void FeaturesOracle::take(const int32_t* named, int64_t count, int64_t* gained) {
  const FacilityLocationKernels& kernel = facility_location_kernels();
  const std::vector<int32_t> positions = x_order_.positions(named, count);
  const int32_t* const ids = positions.data();
  if (lists_ != nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      if (gained != nullptr) gained[i] = lists_->gain(ids[i], reached());
      lists_->take(ids[i], reached());
    }
    return;
  }
  for (int64_t first = 0; first < count; first += TOGETHER) {
    const int64_t many = std::min(TOGETHER, count - first);
    const Buffer rows = stored(ids + first, many);
    const auto* const t = reinterpret_cast<const uint16_t*>(rows.data());
    for (int64_t i = 0; i < many; ++i) {
      if (gained != nullptr) gained[first + i] = kernel.excess(t + i * stride(), reached(), stride());
      kernel.reach(t + i * stride(), stride(), reached());
    }
  }
}

// The steps of some candidates with all rows, [count, stride].
Buffer FeaturesOracle::stored(const int32_t* positions, int64_t count) {
  Buffer rows(count * stride() * sizeof(uint16_t));
  auto* const t = reinterpret_cast<uint16_t*>(rows.data());
  std::memset(t, 0, rows.size());
  const Grid grid(x_, problem_.N, y(), problem_.M);
  const GatheredRows left(x_, quality_, positions, count);
  const PairRule rule{rule_.base, unit_.data(), left.values(), left.count()};
  LaneSums lanes(problem_.threads);
  parallel_for(grid.column_blocks(), 1, problem_.threads, [&](Worker& worker, int64_t slice) {
    PairBlock block = grid.block({0, slice}, nullptr);
    block.rows = left.panels();
    block.is_mirrored = false;
    facility_location_kernels().pairs_stored(block, rule, t, stride(), lanes.of(worker.index(), 0, 0));
  });
  return rows;
}

void FeaturesOracle::before_pick(const uint8_t* is_open) {
  if (lists_ != nullptr || problem_.list_bytes == 0) return;
  const double share = live_share();
  const auto open = static_cast<double>(std::count(is_open, is_open + problem_.N, uint8_t{1}));
  const double pairs = MARGIN * share * open * static_cast<double>(problem_.M);
  const bool has_room = pairs * sizeof(uint32_t) <= static_cast<double>(problem_.list_bytes);
  if (share <= MOST_LIVE && has_room) filter(is_open, share);
}

double FeaturesOracle::live_share() {
  if (problem_.N == 0 || problem_.M == 0) return 0.0;
  if (sample_ == nullptr) {
    sample_ = std::make_unique<Sample>();
    const auto drawn = [](uint64_t draw, int64_t count, int64_t of) {
      std::vector<int32_t> found(count);
      for (int64_t i = 0; i < count; ++i)
        found[i] = static_cast<int32_t>(draw_key(draw_stream(0, draw, 0), i) % static_cast<uint64_t>(of));
      return found;
    };
    sample_->candidates = drawn(KEPT, SAMPLED_CANDIDATES, problem_.N);
    sample_->rows = drawn(CHANCE, std::min(SAMPLED_ROWS, problem_.M), problem_.M);
    const GatheredRows left(x_, quality_, sample_->candidates.data(), SAMPLED_CANDIDATES);
    const auto rows = static_cast<int64_t>(sample_->rows.size());
    const GatheredRows right(y(), unit_, sample_->rows.data(), rows);
    const PairRule rule{rule_.base, right.values(), left.values(), left.count()};
    LaneSums lanes(1);
    sample_->t.resize(SAMPLED_CANDIDATES * round_up(rows, PANEL));
    for (int64_t p = 0; p < num_panels(rows); p += BLOCK_PANELS) {
      const PairBlock block{left.panels(), right.panels(p, p + BLOCK_PANELS), U()};
      facility_location_kernels().pairs_stored(block, rule, sample_->t.data(), round_up(rows, PANEL),
                                               lanes.of(0, 0, 0));
    }
  }
  const auto rows = static_cast<int64_t>(sample_->rows.size());
  std::vector<uint16_t> best(rows);
  for (int64_t i = 0; i < rows; ++i) best[i] = reached()[sample_->rows[i]];
  int64_t live = 0;
  for (int64_t j = 0; j < SAMPLED_CANDIDATES; ++j) {
    const uint16_t* const t = sample_->t.data() + j * round_up(rows, PANEL);
    for (int64_t i = 0; i < rows; ++i) live += t[i] > best[i] ? 1 : 0;
  }
  return static_cast<double>(live) / static_cast<double>(SAMPLED_CANDIDATES * rows);
}

void FeaturesOracle::owners(const int32_t* named, int64_t count, int32_t* owner) {
  const std::vector<int32_t> positions = x_order_.positions(named, count);
  const int32_t* const ids = positions.data();
  const int64_t rows = round_up(problem_.M, PANEL);
  std::vector<int32_t> reached(rows, 0), found(rows, -1), who(rows, -1);
  const double scale = static_cast<double>(problem_.metric == Metric::shifted_cosine ? 2 : 1) *
                       static_cast<double>(std::llrint(problem_.radius * problem_.radius));
  const std::vector<float> plain(rows, static_cast<float>(STEPS / scale));
  const std::vector<float> ones(quality_.size(), 1.0f);
  const Grid grid(x_, problem_.N, y(), problem_.M);
  for (int64_t first = 0; first < count; first += MOST_GATHERED) {
    const GatheredRows left(x_, ones, ids + first, std::min(MOST_GATHERED, count - first));
    const PairRule rule{rule_.base, plain.data(), left.values(), left.count()};
    parallel_for(grid.column_blocks(), 1, problem_.threads, [&](Worker&, int64_t slice) {
      PairBlock block = grid.block({0, slice}, nullptr);
      block.rows = left.panels();
      block.is_mirrored = false;
      facility_location_kernels().pairs_owned(block, rule, reached.data(), found.data());
      for (int64_t i = slice * BLOCK_ROWS; i < std::min(rows, (slice + 1) * BLOCK_ROWS); ++i)
        if (found[i] >= 0) who[i] = static_cast<int32_t>(first + std::exchange(found[i], -1));
    });
  }
  for (int64_t i = 0; i < problem_.M; ++i) owner[y_order().id(i)] = who[i];
}

int64_t FeaturesOracle::cover(const int32_t* named, int64_t count, const int32_t* rows, int64_t num_rows) {
  const std::vector<int32_t> positions = x_order_.positions(named, count);
  const int32_t* const ids = positions.data();
  const GatheredRows right(y(), unit_, y_order().positions(rows, num_rows).data(), num_rows);
  std::vector<int32_t> reached(round_up(num_rows, PANEL), 0), who(reached.size());
  for (int64_t first = 0; first < count; first += MOST_GATHERED) {
    const GatheredRows left(x_, quality_, ids + first, std::min(MOST_GATHERED, count - first));
    const PairRule rule{rule_.base, right.values(), left.values(), left.count()};
    const int64_t panels = num_panels(num_rows), slices = (panels + BLOCK_PANELS - 1) / BLOCK_PANELS;
    parallel_for(slices, 1, problem_.threads, [&](Worker&, int64_t slice) {
      const int64_t p = slice * BLOCK_PANELS;
      const PairBlock block{left.panels(), right.panels(p, p + BLOCK_PANELS), U()};
      facility_location_kernels().pairs_owned(block, rule, reached.data(), who.data());
    });
  }
  return std::accumulate(reached.begin(), reached.end(), int64_t{0});
}

}  // namespace mrt
