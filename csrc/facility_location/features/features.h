// Candidates and rows to cover as features: products are made when a gain is asked for, and never stored. Once few pairs
// can still matter, one pass writes them into lists, which are read from then on.
//
// Memory  packed rows, 2 (N + M) D bytes, or 2 N D where candidates cover themselves; bitmaps of dead tiles, N M / 2,048
//         bytes, or half of that; lists as large as the caller allows, and 128 MiB while they are made.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "facility_location/facility_location.h"
#include "facility_location/features/order.h"
#include "facility_location/features/pair_block.h"
#include "facility_location/lists.h"
#include "facility_location/matrix/matrix.h"
#include "facility_location/oracle.h"

namespace mrt {

struct LargeProblem {
  Features candidates, covered;
  int64_t N, M;
  bool is_self;  // the candidates are what is covered
  Metric metric;
  double radius;                  // of the lattice
  const float *weight, *quality;  // [M], [N] or null: ones
  double maximum;                 // the largest weight times quality
  bool is_ordered;                // whether rows are put in an order in which tiles die early
  int64_t list_bytes;             // that lists may take
  int threads;
};

// Rows on the lattice, and what turns their products into steps.
class FeaturesOracle : public Oracle, public PairSource {
 public:
  explicit FeaturesOracle(const LargeProblem& problem);
  ~FeaturesOracle() override;
  // The first rows that hold NaN or infinity, or -1; nothing else may be called then.
  int64_t bad_candidate() const { return x_.bad_row(); }
  int64_t bad_covered() const { return is_self() ? -1 : y_->bad_row(); }

  // All pairs as a table.
  std::unique_ptr<TableOracle> table();
  // owner[i] = the position, among `count` candidates, of the first that is most similar to row i, -1 where none is at
  // all. Unweighted.
  void owners(const int32_t* ids, int64_t count, int32_t* owner);

  int64_t candidates() const override { return problem_.N; }
  bool bounds(int64_t* out) override;
  void gains(const int32_t* ids, int64_t count, int64_t* out) override;
  void all_gains(int64_t* out) override;
  int64_t refresh_after() const override;
  bool is_cheap() const override { return lists_ != nullptr; }
  void take(const int32_t* ids, int64_t count, int64_t* gained) override;
  void reset() override;
  int64_t rows() const override { return stride(); }
  void above(const int32_t* ids, int64_t count, const uint16_t* floor, std::vector<RowStep>* out) override;
  void two_best(const int32_t* rows, int64_t count, const std::vector<int32_t>& kept, const std::vector<int32_t>& place,
                TwoBest* out) override;
  void before_pick(const uint8_t* is_open) override;
  // Sum over these rows of the largest pair that one of these candidates has with each, whatever was taken.
  int64_t cover(const int32_t* ids, int64_t count, const int32_t* rows, int64_t num_rows);

 private:
  struct Sample;

  const Order& y_order() const { return is_self() ? x_order_ : y_order_; }
  void put_in_order();
  bool is_self() const { return problem_.is_self; }
  const PackedRows& y() const { return is_self() ? x_ : *y_; }
  int64_t U() const { return x_.U(); }
  uint16_t* reached() { return reinterpret_cast<uint16_t*>(reached_.data()); }
  int64_t stride() const { return round_up(problem_.M, TABLE_LANES); }
  void sum_all_gains(int64_t* sums);
  Buffer stored(const int32_t* positions, int64_t count);
  double live_share();
  void filter(const uint8_t* is_open, double share);
  void linear_bounds(int64_t* bounds) const;

  const LargeProblem problem_;
  PackedRows x_;
  std::optional<PackedRows> y_;
  Order x_order_, y_order_;
  // From here on everything is numbered by positions.
  std::vector<float> unit_, quality_;  // [M], [N], padded to panels
  PairRule rule_;
  Buffer reached_;               // [M] uint16, padded
  std::vector<uint64_t> alive_;  // 64 words a block of pairs; empty until a pass has made it
  double alive_share_ = 1.0;     // of all tiles
  std::unique_ptr<Sample> sample_;
  std::unique_ptr<PairLists> lists_;
};

}  // namespace mrt
