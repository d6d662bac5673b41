// Swaps that raise the value of a selection.
#include "facility_location/swaps.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/interrupt.h"

namespace mrt {

namespace {

constexpr int64_t BATCH = 64;

}  // namespace

Swaps::Swaps(PairSource& pairs, std::vector<int32_t> kept, int64_t num_fixed, std::vector<int64_t> bonus,
             std::vector<uint8_t> is_open, Limits limits)
    : pairs_(pairs),
      kept_(std::move(kept)),
      place_(bonus.size(), -1),
      num_fixed_(num_fixed),
      bonus_(std::move(bonus)),
      open_(std::move(is_open)),
      limits_(std::move(limits)),
      best_(pairs.rows()),
      floor_(pairs.rows()),
      loss_(kept_.size()),
      back_(kept_.size(), 0) {
  for (size_t m = 0; m < kept_.size(); ++m) {
    place_[kept_[m]] = static_cast<int32_t>(m);
    if (static_cast<int64_t>(m) < num_fixed_)
      open_[kept_[m]] = 0;
    else
      limits_.take(kept_[m]);
  }
  std::vector<int32_t> all(pairs_.rows());
  std::iota(all.begin(), all.end(), 0);
  pairs_.two_best(all.data(), pairs_.rows(), kept_, place_, best_.data());
  for (int64_t i = 0; i < pairs_.rows(); ++i) floor_[i] = best_[i].t2;
  count_losses();
}

void Swaps::run(int64_t most) {
  const auto coming = std::count(open_.begin(), open_.end(), uint8_t{1});
  const auto going = static_cast<int64_t>(kept_.size()) - num_fixed_;
  const auto leaving =
      std::count_if(kept_.begin() + num_fixed_, kept_.end(), [&](int32_t id) { return open_[id] != 0; });
  if (going == 0) return;
  std::vector<std::vector<RowStep>> found(BATCH);
  for (int64_t idle = 0; made_ < most && idle < coming - leaving;) {
    if (poll_interrupt()) throw Interrupted();
    const std::vector<int32_t> batch = next_batch(std::min(BATCH, coming - leaving - idle));
    pairs_.above(batch.data(), static_cast<int64_t>(batch.size()), floor_.data(), found.data());
    Swap best;
    for (size_t c = 0; c < batch.size(); ++c) {
      const Swap swap = best_of(batch[c], found[c]);
      if (swap.gain > best.gain || (swap.gain == best.gain && swap.gain > 0 && swap.id < best.id)) best = swap;
    }
    tried_ += static_cast<int64_t>(batch.size());
    idle += static_cast<int64_t>(batch.size());
    if (best.gain <= 0) continue;
    make(best);
    idle = 0;
  }
}

// Those that may come in, from where the last batch ended.
std::vector<int32_t> Swaps::next_batch(int64_t most) {
  std::vector<int32_t> batch;
  const auto N = static_cast<int64_t>(open_.size());
  for (int64_t step = 0; step < N && static_cast<int64_t>(batch.size()) < most; ++step) {
    const auto id = static_cast<int32_t>(next_);
    next_ = next_ + 1 == N ? 0 : next_ + 1;
    if (open_[id] != 0 && place_[id] < 0) batch.push_back(id);
  }
  return batch;
}

Swaps::Swap Swaps::best_of(int32_t id, const std::vector<RowStep>& pairs) {
  int64_t shared = bonus_[id];
  for (const RowStep& pair : pairs) {
    const TwoBest& row = best_[pair.row];
    if (pair.t > row.t1) shared += pair.t - row.t1;
    if (row.first >= 0) back_[row.first] += std::min(pair.t, row.t1) - row.t2;
  }
  Swap best{0, id, -1};
  for (auto m = num_fixed_; m < static_cast<int64_t>(kept_.size()); ++m) {
    const int64_t gain = shared + back_[m] - loss_[m];
    if (gain > best.gain && limits_.admits_instead(id, kept_[m])) best = {gain, id, static_cast<int32_t>(m)};
  }
  for (const RowStep& pair : pairs)
    if (best_[pair.row].first >= 0) back_[best_[pair.row].first] = 0;
  return best;
}

void Swaps::make(const Swap& swap) {
  const int32_t gone = kept_[swap.place];
  limits_.give_back(gone);
  limits_.take(swap.id);
  place_[gone] = -1;
  place_[swap.id] = swap.place;
  kept_[swap.place] = swap.id;
  std::vector<int32_t> orphans;
  for (int64_t i = 0; i < pairs_.rows(); ++i)
    if (best_[i].first == swap.place || best_[i].second == swap.place) orphans.push_back(static_cast<int32_t>(i));
  std::vector<RowStep> found;
  pairs_.above(&swap.id, 1, floor_.data(), &found);
  for (const RowStep& pair : found) best_[pair.row].offer(swap.place, pair.t);
  std::vector<TwoBest> again(orphans.size());
  pairs_.two_best(orphans.data(), static_cast<int64_t>(orphans.size()), kept_, place_, again.data());
  for (size_t r = 0; r < orphans.size(); ++r) best_[orphans[r]] = again[r];
  for (const RowStep& pair : found) floor_[pair.row] = best_[pair.row].t2;
  for (const int32_t i : orphans) floor_[i] = best_[i].t2;
  count_losses();
  ++made_;
}

void Swaps::count_losses() {
  for (size_t m = 0; m < kept_.size(); ++m) loss_[m] = bonus_[kept_[m]];
  for (const TwoBest& row : best_)
    if (row.first >= 0) loss_[row.first] += row.t1 - row.t2;
}

}  // namespace mrt
