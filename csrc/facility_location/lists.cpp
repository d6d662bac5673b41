// Lists of pairs: growing, shortening, covering.
#include "facility_location/lists.h"

#include <algorithm>

#include "common/memory.h"
#include "common/parallel.h"
#include "facility_location/facility_location_kernels.h"

namespace mrt {

namespace {

constexpr int64_t SHARED_WORDS = 1 << 15;  // shorter work is not worth waking another thread

}  // namespace

PairLists::PairLists(int64_t candidates, int threads) : lists_(candidates), threads_(threads) {}

uint32_t* PairLists::grow(int64_t j, int64_t first_row, int64_t count) {
  List& list = lists_[j];
  const size_t bytes = (list.length + CHUNK_HEAD + count) * sizeof(uint32_t);
  auto* const words = static_cast<uint32_t*>(std::realloc(list.words.release(), bytes));
  if (words == nullptr) throw OutOfMemory(bytes);
  list.words.reset(words);
  uint32_t* const chunk = words + list.length;
  chunk[0] = static_cast<uint32_t>(first_row);
  chunk[1] = static_cast<uint32_t>(count);
  list.length += CHUNK_HEAD + count;
  return chunk + CHUNK_HEAD;
}

int64_t PairLists::gain(int64_t j, const uint16_t* reached) {
  List& list = lists_[j];
  return list.words == nullptr ? 0 : facility_location_kernels().list_gain(list.words.get(), &list.length, reached);
}

void PairLists::gains(const int32_t* ids, int64_t count, const uint16_t* reached, int64_t* out) {
  int64_t words = 0;
  for (int64_t i = 0; i < count; ++i) words += lists_[ids[i]].length;
  const int threads = words < SHARED_WORDS ? 1 : threads_;
  parallel_for(count, 1, threads, [&](Worker&, int64_t i) { out[i] = gain(ids[i], reached); });
}

void PairLists::cover(int64_t j, uint16_t* reached) const {
  const List& list = lists_[j];
  const uint32_t* const words = list.words.get();
  for (int64_t at = 0; at < list.length; at += CHUNK_HEAD + words[at + 1]) {
    uint16_t* const rows = reached + words[at];
    for (int64_t i = at + CHUNK_HEAD; i < at + CHUNK_HEAD + words[at + 1]; ++i) {
      const auto t = static_cast<uint16_t>(words[i] & ((1u << STEP_BITS) - 1));
      uint16_t& row = rows[words[i] >> STEP_BITS];
      row = std::max(row, t);
    }
  }
}

void PairLists::above(int64_t j, const uint16_t* floor, std::vector<RowStep>& out) const {
  const List& list = lists_[j];
  const uint32_t* const words = list.words.get();
  out.clear();
  for (int64_t at = 0; at < list.length; at += CHUNK_HEAD + words[at + 1])
    for (int64_t i = at + CHUNK_HEAD; i < at + CHUNK_HEAD + words[at + 1]; ++i) {
      const auto t = static_cast<uint16_t>(words[i] & ((1u << STEP_BITS) - 1));
      const auto row = static_cast<int32_t>(words[at] + (words[i] >> STEP_BITS));
      if (t > floor[row]) out.push_back({row, t});
    }
}

void PairLists::take(int64_t j, uint16_t* reached) {
  cover(j, reached);
  lists_[j] = {};
}

}  // namespace mrt
