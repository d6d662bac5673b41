// One pass over all pairs that leaves those above what is reached, as lists by candidate.
//
// Pairs are found in squares of up to 65,536 candidates and rows: what the threads found in a square waits until the
// square is done, and goes to the lists then. A list grows by one chunk a square, rows of a square ascending by squares.
#include <algorithm>
#include <cstring>

#include "common/parallel.h"
#include "facility_location/facility_location_kernels.h"
#include "facility_location/features/features.h"
#include "facility_location/features/grid.h"

namespace mrt {

namespace {

constexpr double WAITING_BYTES = 128 << 20;  // of the pairs of a square

// Blocks on a side of a square, a power of two.
int64_t side_of(double share, bool is_mirrored) {
  int64_t side = LIST_BLOCK / BLOCK_ROWS;
  const auto bytes = [&] {
    const auto rows = static_cast<double>(side * BLOCK_ROWS);
    return share * rows * rows * sizeof(uint32_t) * (is_mirrored ? 2 : 1);
  };
  while (side > 1 && bytes() > WAITING_BYTES) side /= 2;
  return side;
}

// The pairs of two blocks: of the candidates of either.
struct Found {
  BlockPair pair;
  std::vector<uint32_t> words[2];
};

// Words of a KeptPairs, a few pairs of one candidate at a time.
template <class Body>
void each_few(const std::vector<uint32_t>& words, const Body& body) {
  for (size_t at = 0; at < words.size();) {
    const uint32_t count = words[at] >> 16;
    body(words[at] & 0xffff, words.data() + at + 1, static_cast<int64_t>(count));
    at += 1 + count;
  }
}

// Appends to the lists of one block of candidates what a square has for them.
void append(const std::vector<Found>& square, int64_t block, PairLists& lists) {
  int64_t counts[BLOCK_ROWS] = {}, first_row = -1;
  uint32_t* ends[BLOCK_ROWS] = {};
  const auto each_side = [&](const auto& body) {
    for (const Found& found : square)
      for (int side = 0; side < 2; ++side) {
        if ((side == 0 ? found.pair.row : found.pair.column) != block || found.words[side].empty()) continue;
        first_row = (side == 0 ? found.pair.column : found.pair.row) * BLOCK_ROWS / LIST_BLOCK * LIST_BLOCK;
        each_few(found.words[side], body);
      }
  };
  each_side([&](uint32_t j, const uint32_t*, int64_t count) { counts[j] += count; });
  for (int64_t j = 0; j < BLOCK_ROWS; ++j)
    if (counts[j] > 0) ends[j] = lists.grow(block * BLOCK_ROWS + j, first_row, counts[j]);
  each_side([&](uint32_t j, const uint32_t* pairs, int64_t count) {
    std::copy(pairs, pairs + count, ends[j]);
    ends[j] += count;
  });
}

}  // namespace

void FeaturesOracle::filter(const uint8_t* is_open, double share) {
  const Grid grid(x_, problem_.N, y(), problem_.M);
  const bool is_mirrored = grid.is_mirrored();
  const int64_t side = side_of(share, is_mirrored);
  if (alive_.empty()) alive_.assign(grid.size() * BLOCK_PANELS, ~uint64_t{0});
  std::vector<uint8_t> open(round_up(problem_.N, PANEL), 0);
  for (int64_t j = 0; j < problem_.N; ++j) open[j] = is_open[x_order_.id(j)];
  auto lists = std::make_unique<PairLists>(problem_.N, problem_.threads);
  std::vector<Buffer> scratch(std::max(problem_.threads, 1));
  for (int64_t C = 0; C < grid.column_blocks(); C += side)
    for (int64_t R = 0; R < (is_mirrored ? C + 1 : grid.row_blocks()); R += side) {
      std::vector<Found> square;
      for (int64_t J = C; J < std::min(grid.column_blocks(), C + side); ++J)
        for (int64_t I = R; I < std::min(grid.row_blocks(), R + side); ++I)
          if (!is_mirrored || I <= J) square.push_back({{I, J}, {}});
      parallel_for(static_cast<int64_t>(square.size()), 1, problem_.threads, [&](Worker& worker, int64_t n) {
        Found& found = square[n];
        Buffer& mine = scratch[worker.index()];
        if (mine.size() == 0) mine = Buffer(2 * BLOCK_WORDS * sizeof(uint32_t));
        auto* const words = reinterpret_cast<uint32_t*>(mine.data());
        uint32_t* const begins[2] = {words, words + BLOCK_WORDS};
        KeptPairs kept{found.pair.row * BLOCK_ROWS, found.pair.column * BLOCK_ROWS, {begins[0], begins[1]}};
        const PairBlock block = grid.block(found.pair, alive_.data() + grid.item(found.pair) * BLOCK_PANELS);
        facility_location_kernels().pairs_exceeding(block, rule_, reached(), open.data(), kept);
        for (int part = 0; part < 2; ++part) found.words[part].assign(begins[part], kept.ends[part]);
      });
      std::vector<int64_t> blocks;
      for (int64_t I = R; I < std::min(grid.row_blocks(), R + side); ++I) blocks.push_back(I);
      for (int64_t J = C; is_mirrored && C != R && J < std::min(grid.column_blocks(), C + side); ++J)
        blocks.push_back(J);
      parallel_for(static_cast<int64_t>(blocks.size()), 1, problem_.threads,
                   [&](Worker&, int64_t n) { append(square, blocks[n], *lists); });
    }
  lists_ = std::move(lists);
  alive_ = {};
}

}  // namespace mrt
