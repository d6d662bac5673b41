// The lowest row in which any thread met NaN or infinity.
#pragma once

#include <atomic>
#include <cstdint>

namespace mrt {

class FirstBadRow {
 public:
  // True if `row` is one (not -1).
  bool report(int64_t row) {
    if (row < 0) return false;
    int64_t known = row_.load();
    while ((known < 0 || row < known) && !row_.compare_exchange_weak(known, row)) {
    }
    return true;
  }
  int64_t row() const { return row_.load(); }

 private:
  std::atomic<int64_t> row_{-1};
};

}  // namespace mrt
