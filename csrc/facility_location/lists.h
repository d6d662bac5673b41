// The pairs of each candidate that can still matter: those above what is reached. A pair takes four bytes.
//
// A list is a sequence of chunks: first row of a block of 65,536 rows, number of pairs, pairs. A pair has 16 bits of the
// row within its block and 15 of t. What is reached never falls, so a list only ever loses pairs: whoever reads it for a
// gain shortens it in place.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "facility_location/swaps.h"

namespace mrt {

constexpr int64_t LIST_BLOCK = 65'536;  // rows of a chunk
constexpr int STEP_BITS = 15;
constexpr int64_t CHUNK_HEAD = 2;  // words: first row, number of pairs

class PairLists {
 public:
  PairLists(int64_t candidates, int threads);
  // Room for `count` more pairs of a candidate, in a new chunk; the caller writes them. Different candidates may grow at
  // the same time.
  uint32_t* grow(int64_t j, int64_t first_row, int64_t count);
  bool is_kept(int64_t j) const { return lists_[j].words != nullptr; }
  int64_t gain(int64_t j, const uint16_t* reached);
  void gains(const int32_t* ids, int64_t count, const uint16_t* reached, int64_t* out);
  // The pairs of candidate j above floor, and its list stays as it is.
  void above(int64_t j, const uint16_t* floor, std::vector<RowStep>& out) const;
  // What candidate j reaches; its list goes.
  void take(int64_t j, uint16_t* reached);
  // reached[i] = max(reached[i], t of the pair), and the list stays as it is.
  void cover(int64_t j, uint16_t* reached) const;

 private:
  struct Free {
    void operator()(uint32_t* words) const { std::free(words); }
  };
  struct List {
    std::unique_ptr<uint32_t[], Free> words;
    int64_t length = 0;
  };
  std::vector<List> lists_;
  int threads_;
};

}  // namespace mrt
