// Blocks of panels and squared lengths of rows.
#include "tile/blocks.h"

#include <algorithm>

#include "common/parallel.h"
#include "tile/tile_kernels.h"

namespace mrt {

namespace {

constexpr int64_t BLOCK_BYTES = 384 << 10;  // two blocks of packed rows fit a second-level cache of 1 MiB
constexpr int64_t CHUNK = 256;              // rows measured at a time

}  // namespace

int64_t block_panels(int64_t rows, int64_t U, int threads) {
  const int64_t panel = std::max<int64_t>(U, 1) * PANEL * static_cast<int64_t>(sizeof(Unit));
  const int64_t fitting = std::clamp<int64_t>(BLOCK_BYTES / panel, 2, LARGEST_BLOCK);
  return std::clamp<int64_t>(num_panels(rows) / (4 * std::max(threads, 1)), 1, fitting);
}

BlockPair block_pair(int64_t item) {
  auto column = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(item) + 1.0) - 1.0) / 2.0);
  while (column * (column + 1) / 2 > item) --column;
  while ((column + 1) * (column + 2) / 2 <= item) ++column;
  return {item - column * (column + 1) / 2, column};
}

std::vector<double> row_squares(const Features& x, int64_t rows, int threads) {
  std::vector<double> found(rows);
  parallel_for((rows + CHUNK - 1) / CHUNK, 1, threads, [&](Worker&, int64_t chunk) {
    std::vector<float> converted(x.columns);
    std::vector<double> wide(x.columns);
    const int64_t first = chunk * CHUNK;
    tile_kernels().squares(x, first, std::min(CHUNK, rows - first), converted.data(), wide.data(),
                           found.data() + first);
  });
  return found;
}

}  // namespace mrt
