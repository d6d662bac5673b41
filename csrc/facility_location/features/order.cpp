// The order of rows: each goes to its nearest leader.
#include "facility_location/features/order.h"

#include <algorithm>
#include <numeric>

#include "common/draws.h"
#include "common/parallel.h"
#include "facility_location/facility_location_kernels.h"
#include "facility_location/features/grid.h"

namespace mrt {

namespace {

constexpr int64_t LEADERS = 512;
constexpr uint64_t LEADER = 4;  // number of the draw, beside those of mrtkern/_random.py

}  // namespace

Order order_by_leaders(const PackedRows& rows, int64_t count, const PackedRows& leaders, int64_t num_leaders,
                       int threads) {
  std::vector<int32_t> drawn(std::min(LEADERS, num_leaders));
  for (size_t i = 0; i < drawn.size(); ++i)
    drawn[i] = static_cast<int32_t>(draw_key(draw_stream(0, LEADER, 0), static_cast<int64_t>(i)) %
                                    static_cast<uint64_t>(num_leaders));
  const std::vector<float> ones(round_up(std::max(count, num_leaders), PANEL), 1.0f);
  const GatheredRows left(leaders, ones, drawn.data(), static_cast<int64_t>(drawn.size()));
  const float unit = 0x1p-10f;  // products are below 2^24: steps of 1,024 tell near from far
  const std::vector<float> units(ones.size(), unit);
  const PairRule rule{0, units.data(), left.values(), left.count()};
  std::vector<int32_t> reached(round_up(count, PANEL), 0), leader(reached.size(), -1);
  const Grid grid(rows, count, rows, count);
  parallel_for(grid.column_blocks(), 1, threads, [&](Worker&, int64_t slice) {
    PairBlock block = grid.block({0, slice}, nullptr);
    block.rows = left.panels();
    block.is_mirrored = false;
    facility_location_kernels().pairs_owned(block, rule, reached.data(), leader.data());
  });
  std::vector<int32_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return leader[a] < leader[b]; });
  return Order(std::move(ids));
}

}  // namespace mrt
