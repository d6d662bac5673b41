// Pairs as a sparse graph: what a candidate does not list, it does not cover.
#pragma once

#include <vector>

#include "facility_location/facility_location.h"
#include "facility_location/lists.h"
#include "facility_location/oracle.h"

namespace mrt {

// Rows to cover, each with the candidates that cover it: compressed rows.
struct GraphView {
  const int64_t* offsets;  // [M + 1]
  const int64_t* ids;      // [edges] candidates
  const float* values;     // [edges] similarities, not negative
  int64_t M, N;
  double scale;                   // the similarity that counts as 1
  bool has_self;                  // every row covers itself by 1 unless it lists itself; M is N then
  const float *weight, *quality;  // [M], [N] or null: ones
  double maximum;                 // the largest weight times quality
};

class GraphOracle : public Oracle, public PairSource {
 public:
  GraphOracle(const GraphView& graph, int threads);
  int64_t candidates() const override { return N_; }
  bool bounds(int64_t* out) override;
  void gains(const int32_t* ids, int64_t count, int64_t* out) override;
  void take(const int32_t* ids, int64_t count, int64_t* gained) override;
  void reset() override;
  int64_t rows() const override { return M_; }
  // Of lists that no gain has shortened: after reset().
  void above(const int32_t* ids, int64_t count, const uint16_t* floor, std::vector<RowStep>* out) override;
  void two_best(const int32_t* rows, int64_t count, const std::vector<int32_t>& kept, const std::vector<int32_t>& place,
                TwoBest* out) override;
  // Sum over these rows of the largest pair that one of these candidates has with each, whatever was taken.
  int64_t cover(const int32_t* ids, int64_t count, const int32_t* rows, int64_t num_rows);

 private:
  const int64_t N_, M_;
  const int threads_;
  PairLists lists_;
  const GraphView graph_;
  std::vector<uint16_t> reached_;  // [M], and one more
};

}  // namespace mrt
