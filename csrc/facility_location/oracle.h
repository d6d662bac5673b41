// What the lazy greedy loop asks of a ground: a large set of rows, a matrix of similarities, a graph.
//
// Candidates and rows to cover are numbered as the caller numbers them. Gains are sums over the rows to cover, in
// fixed-point steps: bonuses are the loop's.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

namespace mrt {

class Oracle {
 public:
  virtual ~Oracle() = default;
  virtual int64_t candidates() const = 0;
  // Upper bounds of all gains now, as good as they come without much work. Returns whether they are exact.
  virtual bool bounds(int64_t* out) = 0;
  // Exact gains now, of `count` candidates and of all.
  virtual void gains(const int32_t* ids, int64_t count, int64_t* out) = 0;
  virtual void all_gains(int64_t* out) {
    std::vector<int32_t> all(candidates());
    std::iota(all.begin(), all.end(), 0);
    gains(all.data(), candidates(), out);
  }
  // How many candidates `gains` likes at a time, and with how many it costs what it does with one.
  virtual int64_t batch() const { return 64; }
  virtual int64_t least_batch() const { return 1; }
  // After so many single gains it is better to ask for all of them; NEVER: gains are read, not computed.
  static constexpr int64_t NEVER = INT64_MAX;
  virtual int64_t refresh_after() const { return NEVER; }
  // Whether gains of as many candidates as are kept cost little: then the bound is made of exact ones.
  virtual bool is_cheap() const { return true; }
  // Rows are covered by these candidates, one after the other; what each of them gained (null: nobody asks).
  virtual void take(const int32_t* ids, int64_t count, int64_t* gained) = 0;
  // Nothing is covered any more.
  virtual void reset() = 0;
  // Before each pick: the ground may change the way it holds its pairs. is_open: who may be picked yet.
  virtual void before_pick(const uint8_t* is_open) { (void)is_open; }
};

}  // namespace mrt
