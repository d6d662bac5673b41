// The lazy greedy loop.
#include "facility_location/lazy.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "common/draws.h"
#include "common/interrupt.h"
#include "facility_location/facility_location.h"

namespace mrt {

namespace {

constexpr auto BREATH = std::chrono::milliseconds(50);

}  // namespace

LazyGreedy::LazyGreedy(Oracle& oracle, const int64_t* bonus, const uint8_t* is_open, Limits limits)
    : oracle_(oracle), limits_(std::move(limits)) {
  const int64_t N = oracle.candidates();
  bonus_.assign(N, 0);
  open_.assign(N, 1);
  bounds_.assign(N, 0);
  exact_.assign(N, -1);
  if (bonus != nullptr) std::copy(bonus, bonus + N, bonus_.begin());
  if (is_open != nullptr) std::copy(is_open, is_open + N, open_.begin());
}

void LazyGreedy::sample(uint64_t seed, uint64_t group_key, double draws) {
  stream_ = draw_stream(seed, TRIED, group_key);
  draws_ = draws;
}

void LazyGreedy::start(const int32_t* ids, int64_t count) {
  std::vector<int64_t> gained(count);
  oracle_.take(ids, count, gained.data());
  for (int64_t i = 0; i < count; ++i) {
    value_ += gained[i] + bonus_[ids[i]];
    bonuses_ += bonus_[ids[i]];
    open_[ids[i]] = 0;
    ++step_;
  }
}

int64_t LazyGreedy::resume(const int32_t* ids, const int64_t* gains, int64_t count, int64_t bound) {
  std::vector<int64_t> gained(count);
  oracle_.take(ids, count, gained.data());
  for (int64_t i = 0; i < count; ++i) {
    if (gained[i] + bonus_[ids[i]] != gains[i]) return i;
    add(ids[i], gains[i]);
  }
  bound_ = bound;
  return -1;
}

void LazyGreedy::finish(int64_t k, bool is_quick) {
  if (is_quick && !is_prepared_) return;
  if (!is_quick && !is_cheap()) refresh();
  bound_ = std::min(bound_, value_ + most(k, !is_quick));
}

void LazyGreedy::follow(const int32_t* ids, int64_t count, int64_t k) {
  constexpr int64_t TOGETHER = 64;
  int64_t gained[TOGETHER];
  for (int64_t first = 0; first < count;) {
    prepare();
    breathe(k);
    check_bound(k);
    // As many as lie before the next step whose bound is asked for.
    const auto done = static_cast<int64_t>(ids_.size());
    int64_t next = 1;
    while (next <= done) next *= 2;
    const int64_t many = std::min({TOGETHER, count - first, next - done});
    oracle_.take(ids + first, many, gained);
    for (int64_t i = 0; i < many; ++i) add(ids[first + i], gained[i] + bonus_[ids[first + i]]);
    rebuild();
    first += many;
  }
  prepare();
  check_bound(k);
}

Ended LazyGreedy::pick(int64_t until, int64_t k, const Ending& ending) {
  prepare();
  while (static_cast<int64_t>(ids_.size()) < until) {
    if (covered() >= ending.enough) return Ended::enough;
    breathe(k);
    oracle_.before_pick(open_.data());
    if (draws_ > 0.0) {
      draw(k);
    } else if (step_ > 0 && refreshed_ < 0 && oracle_.refresh_after() != Oracle::NEVER) {
      refresh();
    }
    check_bound(k);
    int64_t j = leader();
    if (j < 0 && draws_ > 0.0) {  // nothing of the sample gains: whoever does leads
      rebuild();
      j = leader();
    }
    if (j < 0) {
      bound_ = std::min(bound_, value_ + (limits_.any() ? most(k, true) : 0));
      return ending.least > 0 ? Ended::enough : Ended::dry;
    }
    if (bounds_[j] < ending.least) return Ended::enough;
    const int64_t gain = bounds_[j];
    const auto id = static_cast<int32_t>(j);
    oracle_.take(&id, 1, nullptr);
    pop();
    add(id, gain);
  }
  if (static_cast<int64_t>(ids_.size()) < k) return Ended::no;
  check_bound(k);
  return Ended::full;
}

// The bounds at the beginning, made late: who only follows picks of a checkpoint does not need them before its end.
void LazyGreedy::prepare() {
  if (is_prepared_) return;
  const bool are_exact = oracle_.bounds(bounds_.data());
  for (int64_t j = 0; j < oracle_.candidates(); ++j) bounds_[j] += bonus_[j];
  if (are_exact) std::fill(exact_.begin(), exact_.end(), step_);
  rebuild();
  is_prepared_ = true;
}

void LazyGreedy::rebuild() {
  heap_.clear();
  for (int64_t j = 0; j < oracle_.candidates(); ++j)
    if (open_[j] != 0) heap_.push_back({bounds_[j], static_cast<int32_t>(j)});
  std::make_heap(heap_.begin(), heap_.end(), order());
}

// The heap of a sample: positions in the list of candidates by a hash of (stream, pick, number of the draw), until enough
// different ones may be picked. Nothing is remembered between picks: who goes on from a file draws the same.
void LazyGreedy::draw(int64_t k) {
  if (drawn_.empty()) {
    drawn_.assign(oracle_.candidates(), -1);
    for (int64_t j = 0; j < oracle_.candidates(); ++j)
      if (open_[j] != 0) drawn_from_.push_back(static_cast<int32_t>(j));
    for (int32_t id : ids_) drawn_from_.push_back(id);  // picks of a file were open too
    std::sort(drawn_from_.begin(), drawn_from_.end());
  }
  const auto from = static_cast<int64_t>(drawn_from_.size());
  const auto picked = static_cast<int64_t>(ids_.size());
  const auto size = static_cast<int64_t>(std::ceil(static_cast<double>(from) / static_cast<double>(k) * draws_));
  if (size >= from - picked) return rebuild();
  heap_.clear();
  const uint64_t stream = mix(stream_ ^ mix(static_cast<uint64_t>(picked)));
  ++samples_;
  for (int64_t i = 0; static_cast<int64_t>(heap_.size()) < size; ++i) {
    const int32_t id = drawn_from_[draw_key(stream, i) % static_cast<uint64_t>(from)];
    if (open_[id] == 0 || drawn_[id] == samples_) continue;
    drawn_[id] = samples_;
    push(id);
  }
}

void LazyGreedy::refresh() {
  if (refreshed_ == step_) return;
  std::vector<int64_t> all(oracle_.candidates());
  oracle_.all_gains(all.data());
  for (int64_t j = 0; j < oracle_.candidates(); ++j) bounds_[j] = all[j] + bonus_[j];
  std::fill(exact_.begin(), exact_.end(), step_);
  since_refresh_ = 0;
  refreshed_ = step_;
  rebuild();
}

void LazyGreedy::push(int32_t id) {
  heap_.push_back({bounds_[id], id});
  std::push_heap(heap_.begin(), heap_.end(), order());
}

Entry LazyGreedy::pop() {
  std::pop_heap(heap_.begin(), heap_.end(), order());
  const Entry top = heap_.back();
  heap_.pop_back();
  return top;
}

void LazyGreedy::evaluate(const std::vector<int32_t>& ids) {
  std::vector<int64_t> found(ids.size());
  oracle_.gains(ids.data(), static_cast<int64_t>(ids.size()), found.data());
  for (size_t i = 0; i < ids.size(); ++i) {
    bounds_[ids[i]] = found[i] + bonus_[ids[i]];
    exact_[ids[i]] = step_;
  }
  since_refresh_ += static_cast<int64_t>(ids.size());
}

void LazyGreedy::add(int32_t id, int64_t gain) {
  ids_.push_back(id);
  gained_.push_back(gain);
  value_ += gain;
  bonuses_ += bonus_[id];
  limits_.take(id);
  open_[id] = 0;
  ++step_;
}

// The candidate that leads, on top of the heap and exact; -1: none gains. While it is undecided, the candidates whose
// bounds lead are evaluated in batches that double.
int64_t LazyGreedy::leader() {
  std::vector<int32_t> batch;
  Entry leading{0, INT32_MAX};
  for (int64_t most = oracle_.least_batch();; most = std::min(2 * most, oracle_.batch())) {
    batch.clear();
    while (!heap_.empty() && static_cast<int64_t>(batch.size()) < most) {
      const Entry top = heap_.front();
      if (top.bound <= 0 || is_behind(top, leading)) break;
      if (!limits_.admits(top.id)) {
        pop();
        continue;
      }
      if (is_exact(top.id)) break;
      pop();
      batch.push_back(top.id);
    }
    if (batch.empty()) return heap_.empty() || heap_.front().bound <= 0 ? -1 : heap_.front().id;
    try {
      evaluate(batch);
    } catch (...) {
      for (int32_t id : batch) push(id);  // their bounds hold: the loop can be entered again
      throw;
    }
    for (int32_t id : batch) {
      const Entry now{bounds_[id], id};
      if (is_behind(leading, now)) leading = now;
      push(id);
    }
    if (draws_ == 0.0 && since_refresh_ >= oracle_.refresh_after()) refresh();
  }
}

void LazyGreedy::check_bound(int64_t k) {
  const auto t = static_cast<int64_t>(ids_.size());
  if (checked_ == step_ || !(t == k || (t & (t - 1)) == 0)) return;
  if (t == k && !is_cheap()) refresh();
  if (t == 0 || t == k || is_cheap()) bound_ = std::min(bound_, value_ + most(k, is_cheap()));
  checked_ = step_;
}

// The largest sum of gains that k candidates can have within the limits, or of their bounds.
int64_t LazyGreedy::most(int64_t k, bool is_exact) {
  if (!limits_.any() && draws_ == 0.0) return is_exact ? largest_gains(k) : largest_bounds(k);
  if (is_exact) refresh();
  std::vector<Entry> candidates;
  for (int64_t j = 0; j < oracle_.candidates(); ++j)
    if (open_[j] != 0 && bounds_[j] > 0) candidates.push_back({bounds_[j], static_cast<int32_t>(j)});
  return limits_.most(candidates, k);
}

int64_t LazyGreedy::largest_bounds(int64_t k) const {
  std::vector<int64_t> all;
  all.reserve(heap_.size());
  for (const Entry& entry : heap_) all.push_back(std::max<int64_t>(entry.bound, 0));
  const auto many = std::min<int64_t>(k, static_cast<int64_t>(all.size()));
  if (many < static_cast<int64_t>(all.size()))
    std::nth_element(all.begin(), all.begin() + many, all.end(), std::greater<int64_t>());
  int64_t sum = 0;
  for (int64_t i = 0; i < many; ++i) sum += all[i];
  return sum;
}

// The sum of the k largest gains: in the order of their bounds, candidates become exact until k of them are not below
// the next bound, or until all of them are.
int64_t LazyGreedy::largest_gains(int64_t k) {
  if (k == 0) return 0;
  const int64_t many = std::max(oracle_.batch(), k / 4);  // a few of them are not needed in the end
  std::vector<int64_t> best;                              // a heap whose top is the least of the k largest so far
  std::vector<int32_t> batch;
  int64_t sum = 0;
  const auto consider = [&](int64_t gain) {
    if (gain <= 0) return;
    if (static_cast<int64_t>(best.size()) == k) {
      if (gain <= best.front()) return;
      sum -= best.front();
      std::pop_heap(best.begin(), best.end(), std::greater<int64_t>());
      best.pop_back();
    }
    sum += gain;
    best.push_back(gain);
    std::push_heap(best.begin(), best.end(), std::greater<int64_t>());
  };
  std::vector<Entry> rest = heap_;
  for (;;) {
    batch.clear();
    while (!rest.empty() && static_cast<int64_t>(batch.size()) < many) {
      const Entry top = rest.front();
      if (top.bound <= 0 || (static_cast<int64_t>(best.size()) == k && top.bound <= best.front())) break;
      std::pop_heap(rest.begin(), rest.end(), order());
      rest.pop_back();
      if (is_exact(top.id)) {
        consider(top.bound);
      } else {
        batch.push_back(top.id);
      }
    }
    if (batch.empty()) break;
    try {
      evaluate(batch);
    } catch (...) {
      rebuild();  // what earlier batches found: the heap must not lead with bounds that are not theirs
      throw;
    }
    for (int32_t id : batch) consider(bounds_[id]);
    if (since_refresh_ >= oracle_.refresh_after()) {
      refresh();
      return largest_bounds(k);
    }
  }
  rebuild();
  return sum;
}

// Now and then: does the user want to stop, and how far are we?
void LazyGreedy::breathe(int64_t k) {
  const auto now = std::chrono::steady_clock::now();
  if (now - breathed_ < BREATH) return;
  breathed_ = now;
  if (poll_interrupt()) throw Interrupted();
  tell_progress(static_cast<double>(ids_.size()) / static_cast<double>(std::max<int64_t>(k, 1)));
}

}  // namespace mrt
