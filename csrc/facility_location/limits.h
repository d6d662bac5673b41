// What a set may hold beside k candidates: costs within a budget, and of each class no more than its cap and, where it
// has a least number, no fewer.
//
// A candidate that is not admitted never is again: costs and counts only grow. So sets within caps and least numbers are
// those of a matroid (whatever has room for what the others still lack), and greedy reaches half of the optimum there.
#pragma once

#include <cstdint>
#include <vector>

namespace mrt {

struct LimitsView {
  const int64_t* cost;  // [N] not negative, or null: no budget
  int64_t budget;
  bool is_by_ratio;      // candidates lead by gain / cost instead of gain
  const int32_t* label;  // [N] class of each, or null: no classes
  const int64_t* cap;    // [classes]
  const int64_t* least;  // [classes] or null: zeros
  int64_t classes;
};

// What may lead a heap: a gain, or what bounds it.
struct Entry {
  int64_t bound;
  int32_t id;
};

class Limits {
 public:
  Limits() = default;
  // Everything is copied.
  Limits(const LimitsView& view, int64_t N, int64_t k);

  bool any() const { return !cost_.empty() || !label_.empty(); }
  bool admits(int32_t id) const;
  void take(int32_t id);
  // Whether one that is not picked may stand in for one that is.
  bool admits_instead(int32_t coming, int32_t going) const;
  void give_back(int32_t id);
  // Of these candidates, one after the other, those that are admitted when their turn comes, at most `most`.
  std::vector<int32_t> admitted(const int32_t* ids, int64_t count, int64_t most);

  // Whether a comes after b: less bound, or less bound a cost, then less bound, then the higher row number.
  bool is_behind(const Entry& a, const Entry& b) const {
    if (is_by_ratio_ && a.bound > 0 && b.bound > 0) {
      const __int128 left = static_cast<__int128>(a.bound) * cost_[b.id];
      const __int128 right = static_cast<__int128>(b.bound) * cost_[a.id];
      if (left != right) return left < right;
    }
    return a.bound != b.bound ? a.bound < b.bound : a.id > b.id;
  }

  // No set within the limits, of at most k of these candidates, has a larger sum of bounds. Reorders them.
  int64_t most(std::vector<Entry>& candidates, int64_t k) const;

 private:
  int64_t most_within_budget(std::vector<Entry>& candidates) const;
  void drop_beyond_caps(std::vector<Entry>& candidates) const;

  std::vector<int64_t> cost_, cap_, least_, count_;
  std::vector<int32_t> label_;
  int64_t budget_ = 0, spent_ = 0, spare_ = 0;  // spare: picks that no class still lacks
  bool is_by_ratio_ = false;
};

}  // namespace mrt
