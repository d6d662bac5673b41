// Pairs as a table of fixed-point steps, candidate by candidate: of a given matrix of similarities, or of features while
// it fits. The table is read from memory: gains of all candidates cost one pass over 2 N M bytes.
#pragma once

#include <vector>

#include "common/memory.h"
#include "facility_location/facility_location.h"
#include "facility_location/matrix/view.h"
#include "facility_location/oracle.h"
#include "facility_location/swaps.h"

namespace mrt {

constexpr int64_t TABLE_LANES = 32;  // pairs of a 512-bit register: rows of the table are a multiple of it

class TableOracle : public Oracle, public PairSource {
 public:
  // A table of zeros, yet to be filled.
  TableOracle(int64_t candidates, int64_t covered, int threads);
  // weight [M], quality [N], may be null: ones. maximum: the largest weight times quality.
  TableOracle(const MatrixView& s, const float* weight, const float* quality, double maximum, int threads);
  static int64_t bytes(int64_t candidates, int64_t covered) { return 2 * candidates * round_up(covered, TABLE_LANES); }

  // owner[i] = the position, among `count` candidates, of the first with the largest pair with row i, -1 where that is 0.
  void owners(const int32_t* ids, int64_t count, int64_t covered, int32_t* owner) const;

  uint16_t* t() { return reinterpret_cast<uint16_t*>(table_.data()); }
  int64_t stride() const { return stride_; }
  std::vector<int64_t>& sums() { return sums_; }  // [N] of each row of the table: the gains of a first pick

  int64_t candidates() const override { return N_; }
  bool bounds(int64_t* out) override;
  void gains(const int32_t* ids, int64_t count, int64_t* out) override;
  void take(const int32_t* ids, int64_t count, int64_t* gained) override;
  void reset() override;
  int64_t rows() const override { return stride_; }
  void above(const int32_t* ids, int64_t count, const uint16_t* floor, std::vector<RowStep>* out) override;
  void two_best(const int32_t* rows, int64_t count, const std::vector<int32_t>& kept, const std::vector<int32_t>& place,
                TwoBest* out) override;
  // Sum over these rows of the largest pair that one of these candidates has with each, whatever was taken.
  int64_t cover(const int32_t* ids, int64_t count, const int32_t* rows, int64_t num_rows);

 private:
  const uint16_t* row(int64_t j) const { return reinterpret_cast<const uint16_t*>(table_.data()) + j * stride_; }

  const int64_t N_, stride_;
  const int threads_;
  Buffer table_, reached_;
  std::vector<int64_t> sums_;
  bool is_fresh_ = true;  // nothing is taken
};

}  // namespace mrt
