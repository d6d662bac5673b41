// Pairs that swaps ask for, of features: products, none of which is stored.
#include <algorithm>

#include "common/parallel.h"
#include "facility_location/facility_location_kernels.h"
#include "facility_location/features/features.h"
#include "facility_location/features/grid.h"

namespace mrt {

void FeaturesOracle::reset() {
  std::fill(reached(), reached() + stride(), uint16_t{0});
  lists_.reset();
  alive_ = {};
  alive_share_ = 1.0;
}

void FeaturesOracle::above(const int32_t* named, int64_t count, const uint16_t* floor, std::vector<RowStep>* out) {
  const std::vector<int32_t> positions = x_order_.positions(named, count);
  const Buffer rows = stored(positions.data(), count);
  const auto* const t = reinterpret_cast<const uint16_t*>(rows.data());
  for (int64_t c = 0; c < count; ++c) steps_above(t + c * stride(), floor, stride(), out[c]);
}

void FeaturesOracle::two_best(const int32_t* rows, int64_t count, const std::vector<int32_t>& kept,
                              const std::vector<int32_t>&, TwoBest* out) {
  const auto K = static_cast<int64_t>(kept.size());
  const std::vector<int32_t> positions = x_order_.positions(kept.data(), K);
  constexpr int64_t PART = BLOCK_ROWS;  // rows of a thread at a time
  LaneSums lanes(problem_.threads);
  parallel_for((count + PART - 1) / PART, 1, problem_.threads, [&](Worker& worker, int64_t part) {
    const int64_t first = part * PART, many = std::min(PART, count - first), width = round_up(many, PANEL);
    std::vector<int32_t> inside(many);  // rows beyond the last one are padding: no candidate covers them
    for (int64_t r = 0; r < many; ++r)
      inside[r] = static_cast<int32_t>(std::min<int64_t>(rows[first + r], problem_.M - 1));
    const GatheredRows right(y(), unit_, inside.data(), many);
    std::fill(out + first, out + first + many, TwoBest{});
    for (int64_t m = 0; m < K; m += BLOCK_PANELS) {
      const GatheredRows left(x_, quality_, positions.data() + m, std::min(BLOCK_PANELS, K - m));
      std::vector<uint16_t> t(left.count() * width);
      const PairRule rule{rule_.base, right.values(), left.values(), left.count()};
      const PairBlock block{left.panels(), right.panels(), U()};
      facility_location_kernels().pairs_stored(block, rule, t.data(), width, lanes.of(worker.index(), 0, 0));
      for (int64_t c = 0; c < left.count(); ++c)
        for (int64_t r = 0; r < many; ++r)
          if (rows[first + r] < problem_.M) out[first + r].offer(static_cast<int32_t>(m + c), t[c * width + r]);
    }
  });
}

}  // namespace mrt
