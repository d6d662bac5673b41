// Budgets and classes of a selection.
#include "facility_location/limits.h"

#include <algorithm>
#include <numeric>

namespace mrt {

namespace {

bool is_larger(const Entry& a, const Entry& b) {
  return a.bound > b.bound;
}

// The `many` largest come first, and no others are left.
void keep_largest(std::vector<Entry>& entries, int64_t many) {
  if (many >= static_cast<int64_t>(entries.size())) return;
  std::nth_element(entries.begin(), entries.begin() + many, entries.end(), is_larger);
  entries.resize(many);
}

int64_t sum_of(const std::vector<Entry>& entries) {
  return std::accumulate(entries.begin(), entries.end(), int64_t{0},
                         [](int64_t sum, const Entry& entry) { return sum + entry.bound; });
}

}  // namespace

Limits::Limits(const LimitsView& view, int64_t N, int64_t k)
    : budget_(view.budget), spare_(k), is_by_ratio_(view.cost != nullptr && view.is_by_ratio) {
  if (view.cost != nullptr) cost_.assign(view.cost, view.cost + N);
  if (view.label == nullptr) return;
  label_.assign(view.label, view.label + N);
  cap_.assign(view.cap, view.cap + view.classes);
  least_.assign(view.classes, 0);
  count_.assign(view.classes, 0);
  if (view.least != nullptr) std::copy(view.least, view.least + view.classes, least_.begin());
  spare_ -= std::accumulate(least_.begin(), least_.end(), int64_t{0});
}

bool Limits::admits(int32_t id) const {
  if (!cost_.empty() && cost_[id] > budget_ - spent_) return false;
  if (label_.empty()) return true;
  const int32_t label = label_[id];
  return count_[label] < cap_[label] && (count_[label] < least_[label] || spare_ > 0);
}

void Limits::take(int32_t id) {
  if (!cost_.empty()) spent_ += cost_[id];
  if (label_.empty()) return;
  const int32_t label = label_[id];
  if (count_[label] >= least_[label]) --spare_;
  ++count_[label];
}

bool Limits::admits_instead(int32_t coming, int32_t going) const {
  if (!cost_.empty() && cost_[coming] - cost_[going] > budget_ - spent_) return false;
  if (label_.empty() || label_[coming] == label_[going]) return true;
  const int32_t in = label_[coming], out = label_[going];
  return count_[in] < cap_[in] && count_[out] > least_[out];
}

void Limits::give_back(int32_t id) {
  if (!cost_.empty()) spent_ -= cost_[id];
  if (label_.empty()) return;
  const int32_t label = label_[id];
  if (--count_[label] >= least_[label]) ++spare_;
}

std::vector<int32_t> Limits::admitted(const int32_t* ids, int64_t count, int64_t most) {
  std::vector<int32_t> found;
  for (int64_t i = 0; i < count && static_cast<int64_t>(found.size()) < most; ++i) {
    if (!admits(ids[i])) continue;
    take(ids[i]);
    found.push_back(ids[i]);
  }
  return found;
}

int64_t Limits::most(std::vector<Entry>& candidates, int64_t k) const {
  int64_t within_budget = INT64_MAX;
  if (!cost_.empty()) {
    const auto is_too_dear = [&](const Entry& entry) { return cost_[entry.id] > budget_; };
    candidates.erase(std::remove_if(candidates.begin(), candidates.end(), is_too_dear), candidates.end());
    within_budget = most_within_budget(candidates);
  }
  if (!label_.empty()) drop_beyond_caps(candidates);
  keep_largest(candidates, k);
  return std::min(within_budget, sum_of(candidates));
}

// The fractional knapsack: by gain a cost, the last of them in part.
int64_t Limits::most_within_budget(std::vector<Entry>& candidates) const {
  const auto leads = [&](const Entry& a, const Entry& b) {
    return static_cast<__int128>(a.bound) * cost_[b.id] > static_cast<__int128>(b.bound) * cost_[a.id];
  };
  std::sort(candidates.begin(), candidates.end(), leads);
  int64_t left = budget_, sum = 0;
  for (const Entry& entry : candidates) {
    const int64_t cost = cost_[entry.id];
    if (cost > left) {
      const __int128 part = static_cast<__int128>(entry.bound) * left;
      return sum + static_cast<int64_t>((part + cost - 1) / cost);
    }
    left -= cost;
    sum += entry.bound;
  }
  return sum;
}

void Limits::drop_beyond_caps(std::vector<Entry>& candidates) const {
  std::sort(candidates.begin(), candidates.end(), [&](const Entry& a, const Entry& b) {
    return label_[a.id] != label_[b.id] ? label_[a.id] < label_[b.id] : a.bound > b.bound;
  });
  size_t kept = 0;
  int64_t count = 0;
  int32_t label = -1;
  for (const Entry& entry : candidates) {
    count = label_[entry.id] == label ? count + 1 : 1;
    label = label_[entry.id];
    if (count <= cap_[label]) candidates[kept++] = entry;
  }
  candidates.resize(kept);
}

}  // namespace mrt
