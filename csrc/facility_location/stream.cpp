// Pairs of large sets on the CPU: who computes which tiles. A block of candidates belongs to one thread, so that its
// sums need no locks; its rows are in the second-level cache while all rows to cover stream past.
// Memory  4 U bytes of packed rows per candidate and per row to cover, 6 per row to cover; kept pairs twice while they
//         are gathered.
#include <algorithm>
#include <cmath>
#include <vector>

#include "common/interrupt.h"
#include "common/parallel.h"
#include "facility_location/facility_location_kernels.h"
#include "tile/blocks.h"

namespace mrt {

namespace {

// The kept pairs of one block, row by row.
struct Kept {
  int64_t first;
  std::vector<std::vector<std::pair<int64_t, uint16_t>>> rows;
  static void keep(void* context, int64_t j, int64_t i, uint16_t t) {
    Kept& kept = *static_cast<Kept*>(context);
    kept.rows[j - kept.first].emplace_back(i, t);
  }
};

void gather(const std::vector<Kept>& blocks, StreamResult::Sparse& out) {
  out.offsets.assign(1, 0);
  for (const Kept& block : blocks) {
    for (const auto& row : block.rows) {
      out.offsets.push_back(out.offsets.back() + static_cast<int64_t>(row.size()));
      for (const auto& [i, t] : row) {
        out.ids.push_back(i);
        out.values.push_back(t);
      }
    }
  }
}

}  // namespace

StreamBadRows stream_pairs(const StreamProblem& problem, const uint16_t* best, const StreamResult& result,
                           int threads) {
  const FacilityLocationKernels& kernel = facility_location_kernels();
  const Packing packing{{problem.radius}, {}};
  const PackedRows x(problem.candidates, problem.N, packing, threads), y(problem.covered, problem.M, packing, threads);
  if (x.bad_row() >= 0 || y.bad_row() >= 0) return {x.bad_row(), y.bad_row()};
  const int64_t P = num_panels(problem.N), Q = num_panels(problem.M), stride = Q * PANEL;
  const int64_t one = std::llrint(problem.radius * problem.radius);
  const bool is_shifted = problem.metric == Metric::shifted_cosine;
  const double scale = static_cast<double>(is_shifted ? 2 * one : one) * problem.maximum;
  std::vector<float> unit(stride, 0.0f), quality(problem.N, 1.0f);
  for (int64_t i = 0; i < problem.M; ++i)
    unit[i] = static_cast<float>((problem.weight == nullptr ? 1.0 : problem.weight[i]) * STEPS / scale);
  if (problem.quality != nullptr) std::copy(problem.quality, problem.quality + problem.N, quality.begin());
  std::vector<uint16_t> reached(stride, 0);
  if (best != nullptr) std::copy(best, best + problem.M, reached.begin());
  const PairRule rule{static_cast<int32_t>(is_shifted ? one : 0), unit.data(), quality.data(), problem.N};
  if (result.gains != nullptr) std::fill(result.gains, result.gains + problem.N, int64_t{0});
  if (result.largest != nullptr) std::fill(result.largest, result.largest + problem.N, uint16_t{0});
  const int64_t block = block_panels(problem.N, x.U(), threads), blocks = (P + block - 1) / block;
  std::vector<Kept> kept(blocks);
  const ProgressRange whole(0.0, 1.0);
  parallel_for(blocks, 1, threads, [&](Worker& worker, int64_t b) {
    const Panels rows = x.panels(b * block, std::min(P, (b + 1) * block));
    kept[b].first = rows.first * PANEL;
    if (result.sparse != nullptr) kept[b].rows.resize(std::min(problem.N, rows.last * PANEL) - kept[b].first);
    for (int64_t q = 0; q < Q; q += MOST_COLUMNS) {
      const Panels columns = y.panels(q, std::min(Q, q + MOST_COLUMNS));
      if (result.t != nullptr) {
        kernel.pairs_summed(rows, columns, x.U(), rule, result.t, stride, result.gains);
      } else if (result.gains != nullptr) {
        kernel.pairs_gained(rows, columns, x.U(), rule, reached.data(), result.gains);
      }
      if (result.largest != nullptr) kernel.pairs_largest(rows, columns, x.U(), rule, result.largest);
      if (result.sparse != nullptr)
        kernel.pairs_exceeding(rows, columns, x.U(), rule, reached.data(), Kept::keep, &kept[b]);
      worker.checkpoint();
    }
  });
  if (result.sparse != nullptr) gather(kept, *result.sparse);
  return {-1, -1};
}

}  // namespace mrt
