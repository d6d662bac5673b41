// A graph turned round: by candidates, in fixed point.
#include "facility_location/graph/graph.h"

#include <algorithm>

#include "common/parallel.h"
#include "facility_location/graph/edges.h"

namespace mrt {

namespace {

constexpr int64_t ROWS_AT_ONCE = 256;

// The lists of all candidates, rows ascending: counted block by block of rows, then written.
void fill(const Edges& edges, PairLists& lists) {
  std::vector<int64_t> counts(edges.candidates());
  std::vector<uint32_t*> ends(edges.candidates(), nullptr);
  for (int64_t first = 0; first < edges.rows(); first += LIST_BLOCK) {
    const int64_t last = std::min(edges.rows(), first + LIST_BLOCK);
    std::fill(counts.begin(), counts.end(), 0);
    edges.each(first, last, [&](int64_t, int64_t j, uint16_t) { ++counts[j]; });
    for (int64_t j = 0; j < edges.candidates(); ++j)
      if (counts[j] > 0) ends[j] = lists.grow(j, first, counts[j]);
    edges.each(first, last, [&](int64_t i, int64_t j, uint16_t t) {
      *ends[j]++ = static_cast<uint32_t>(i - first) << STEP_BITS | t;
    });
  }
}

}  // namespace

GraphOracle::GraphOracle(const GraphView& graph, int threads)
    : N_(graph.N), M_(graph.M), threads_(threads), lists_(graph.N, threads), graph_(graph), reached_(graph.M + 1, 0) {
  fill(Edges(graph), lists_);
}

void GraphOracle::reset() {
  lists_ = PairLists(N_, threads_);
  fill(Edges(graph_), lists_);
  std::fill(reached_.begin(), reached_.end(), uint16_t{0});
}

void GraphOracle::above(const int32_t* ids, int64_t count, const uint16_t* floor, std::vector<RowStep>* out) {
  for (int64_t c = 0; c < count; ++c) lists_.above(ids[c], floor, out[c]);
}

void GraphOracle::two_best(const int32_t* rows, int64_t count, const std::vector<int32_t>&,
                           const std::vector<int32_t>& place, TwoBest* out) {
  const Edges edges(graph_);
  parallel_for(count, ROWS_AT_ONCE, threads_, [&](Worker&, int64_t r) {
    out[r] = {};
    edges.each(rows[r], rows[r] + 1, [&](int64_t, int64_t j, uint16_t t) {
      if (place[j] >= 0) out[r].offer(place[j], t);
    });
  });
}

bool GraphOracle::bounds(int64_t* out) {
  all_gains(out);
  return true;
}

void GraphOracle::gains(const int32_t* ids, int64_t count, int64_t* out) {
  lists_.gains(ids, count, reached_.data(), out);
}

void GraphOracle::take(const int32_t* ids, int64_t count, int64_t* gained) {
  for (int64_t i = 0; i < count; ++i) {
    if (gained != nullptr) gained[i] = lists_.gain(ids[i], reached_.data());
    lists_.take(ids[i], reached_.data());
  }
}

// From the graph as it was given: the lists have lost what is reached.
int64_t GraphOracle::cover(const int32_t* ids, int64_t count, const int32_t* rows, int64_t num_rows) {
  std::vector<uint8_t> is_member(N_, 0);
  for (int64_t k = 0; k < count; ++k) is_member[ids[k]] = 1;
  const Edges edges(graph_);
  int64_t sum = 0;
  for (int64_t k = 0; k < num_rows; ++k) {
    uint16_t best = 0;
    edges.each(rows[k], rows[k] + 1, [&](int64_t, int64_t j, uint16_t t) {
      if (is_member[j] != 0) best = std::max(best, t);
    });
    sum += best;
  }
  return sum;
}

}  // namespace mrt
