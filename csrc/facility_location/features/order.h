// Rows in an order in which neighbours lie side by side, so that whole tiles die early.
#pragma once

#include <cstdint>
#include <vector>

#include "tile/panels.h"

namespace mrt {

// Positions and the caller's row numbers. Empty: they are the same.
class Order {
 public:
  Order() = default;
  explicit Order(std::vector<int32_t> ids) : ids_(std::move(ids)), positions_(ids_.size()) {
    for (size_t i = 0; i < ids_.size(); ++i) positions_[ids_[i]] = static_cast<int32_t>(i);
  }
  const std::vector<int32_t>& ids() const { return ids_; }
  int32_t id(int64_t position) const { return ids_.empty() ? static_cast<int32_t>(position) : ids_[position]; }
  int32_t position(int64_t id) const { return ids_.empty() ? static_cast<int32_t>(id) : positions_[id]; }
  std::vector<int32_t> positions(const int32_t* ids, int64_t count) const {
    std::vector<int32_t> found(count);
    for (int64_t i = 0; i < count; ++i) found[i] = position(ids[i]);
    return found;
  }

 private:
  std::vector<int32_t> ids_, positions_;
};

// Rows by the leader, one of a few drawn rows of `leaders`, that each is nearest to.
Order order_by_leaders(const PackedRows& rows, int64_t count, const PackedRows& leaders, int64_t num_leaders,
                       int threads);

}  // namespace mrt
