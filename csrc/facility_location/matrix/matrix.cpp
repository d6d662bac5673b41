// A table of pairs: gains are one saturating subtraction for 16 or 32 pairs.
#include "facility_location/matrix/matrix.h"

#include <algorithm>
#include <cstring>

#include "common/parallel.h"
#include "facility_location/facility_location_kernels.h"

namespace mrt {

namespace {

constexpr int64_t SHARED_ROWS = 1 << 19;        // pairs of a batch from which on other threads help
constexpr int64_t ROWS = 256, CANDIDATES = 64;  // of the matrix that are turned at a time: STEP_ROWS, STEP_CANDIDATES

uint16_t* zeros(Buffer& buffer) {
  std::memset(buffer.data(), 0, buffer.size());
  return reinterpret_cast<uint16_t*>(buffer.data());
}

}  // namespace

TableOracle::TableOracle(int64_t candidates, int64_t covered, int threads)
    : N_(candidates),
      stride_(round_up(covered, TABLE_LANES)),
      threads_(threads),
      table_(bytes(candidates, covered)),
      reached_(stride_ * sizeof(uint16_t)),
      sums_(candidates, 0) {
  zeros(reached_);
}

TableOracle::TableOracle(const MatrixView& s, const float* weight, const float* quality, double maximum, int threads)
    : TableOracle(s.N, s.M, threads) {
  std::vector<float> unit(round_up(s.M, PANEL), 0.0f), q(round_up(s.N, PANEL), 1.0f);
  for (int64_t i = 0; i < s.M; ++i)
    unit[i] = static_cast<float>((weight == nullptr ? 1.0 : weight[i]) * STEPS / maximum);
  if (quality != nullptr) std::copy(quality, quality + s.N, q.begin());
  const PairRule rule{0, unit.data(), q.data(), s.N};
  parallel_for((s.N + CANDIDATES - 1) / CANDIDATES, 1, threads, [&](Worker& worker, int64_t strip) {
    const int64_t first = strip * CANDIDATES, last = std::min(s.N, first + CANDIDATES);
    for (int64_t j = first; j < last; ++j)
      std::fill(t() + j * stride_ + round_up(s.M, PANEL), t() + (j + 1) * stride_, uint16_t{0});
    for (int64_t i = 0; i < s.M; i += ROWS) {
      facility_location_kernels().matrix_steps(s, rule, first, i, t(), stride_);
      worker.checkpoint();
    }
    for (int64_t j = first; j < last; ++j) sums_[j] = facility_location_kernels().excess(row(j), nullptr, stride_);
  });
}

bool TableOracle::bounds(int64_t* out) {
  std::copy(sums_.begin(), sums_.end(), out);
  return is_fresh_;
}

void TableOracle::gains(const int32_t* ids, int64_t count, int64_t* out) {
  const auto* const reached = reinterpret_cast<const uint16_t*>(reached_.data());
  const int threads = count * stride_ < SHARED_ROWS ? 1 : threads_;
  parallel_for(count, 1, threads,
               [&](Worker&, int64_t i) { out[i] = facility_location_kernels().excess(row(ids[i]), reached, stride_); });
}

void TableOracle::take(const int32_t* ids, int64_t count, int64_t* gained) {
  auto* const reached = reinterpret_cast<uint16_t*>(reached_.data());
  is_fresh_ = is_fresh_ && count == 0;
  for (int64_t i = 0; i < count; ++i) {
    if (gained != nullptr) gains(ids + i, 1, gained + i);
    facility_location_kernels().reach(row(ids[i]), stride_, reached);
  }
}

void TableOracle::reset() {
  zeros(reached_);
  is_fresh_ = true;
}

void TableOracle::above(const int32_t* ids, int64_t count, const uint16_t* floor, std::vector<RowStep>* out) {
  const int threads = count * stride_ < SHARED_ROWS ? 1 : threads_;
  parallel_for(count, 1, threads, [&](Worker&, int64_t c) { steps_above(row(ids[c]), floor, stride_, out[c]); });
}

void TableOracle::two_best(const int32_t* rows, int64_t count, const std::vector<int32_t>& kept,
                           const std::vector<int32_t>&, TwoBest* out) {
  constexpr int64_t PART = 1024;
  parallel_for((count + PART - 1) / PART, 1, threads_, [&](Worker&, int64_t part) {
    const int64_t first = part * PART, last = std::min(count, first + PART);
    for (int64_t r = first; r < last; ++r) out[r] = {};
    for (size_t m = 0; m < kept.size(); ++m)
      for (int64_t r = first; r < last; ++r) out[r].offer(static_cast<int32_t>(m), row(kept[m])[rows[r]]);
  });
}

void TableOracle::owners(const int32_t* ids, int64_t count, int64_t covered, int32_t* owner) const {
  std::vector<uint16_t> best(covered, 0);
  std::fill(owner, owner + covered, -1);
  constexpr int64_t PART = 4096;  // rows that stay in the first-level cache while all candidates pass
  parallel_for((covered + PART - 1) / PART, 1, threads_, [&](Worker&, int64_t part) {
    const int64_t first = part * PART, many = std::min(PART, covered - first);
    for (int64_t k = 0; k < count; ++k)
      facility_location_kernels().own(row(ids[k]) + first, many, static_cast<int32_t>(k), best.data() + first,
                                      owner + first);
  });
}

int64_t TableOracle::cover(const int32_t* ids, int64_t count, const int32_t* rows, int64_t num_rows) {
  Buffer buffer(stride_ * sizeof(uint16_t));
  uint16_t* const best = zeros(buffer);
  for (int64_t i = 0; i < count; ++i) facility_location_kernels().reach(row(ids[i]), stride_, best);
  int64_t sum = 0;
  for (int64_t i = 0; i < num_rows; ++i) sum += best[rows[i]];
  return sum;
}

}  // namespace mrt
