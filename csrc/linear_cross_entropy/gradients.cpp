// Streams over gradients: every thread takes blocks that fit its first-level cache.
#include "linear_cross_entropy/gradients.h"

#include <algorithm>

#include "common/parallel.h"
#include "tile/convert.h"

namespace mrt {

namespace {

constexpr int64_t COLUMNS_TOGETHER = 256;  // a row of them is 16 cache lines, and their float64 sums are 2 KiB
constexpr int64_t NUMBERS_TOGETHER = 1 << 14;
constexpr int64_t GRAIN = 4;  // blocks claimed at a time

int64_t blocks(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

}  // namespace

void add_column_sums(const float* z, int64_t stride, int64_t C, int64_t V, float* total, int threads) {
  parallel_for(blocks(V, COLUMNS_TOGETHER), 1, threads, [&](Worker&, int64_t block) {
    const int64_t first = block * COLUMNS_TOGETHER, count = std::min(COLUMNS_TOGETHER, V - first);
    double sums[COLUMNS_TOGETHER] = {};
    for (int64_t c = 0; c < C; ++c)
      for (int64_t v = 0; v < count; ++v) sums[v] += static_cast<double>(z[c * stride + first + v]);
    for (int64_t v = 0; v < count; ++v) total[first + v] += static_cast<float>(sums[v]);
  });
}

void scale(const float* gradient, void* out, DType dtype, int64_t count, float factor, int threads) {
  parallel_for(blocks(count, NUMBERS_TOGETHER), GRAIN, threads, [&](Worker&, int64_t block) {
    const int64_t first = block * NUMBERS_TOGETHER, last = std::min(count, first + NUMBERS_TOGETHER);
    if (dtype == DType::float32) {
      float* const to = static_cast<float*>(out);
      for (int64_t i = first; i < last; ++i) to[i] = gradient[i] * factor;
      return;
    }
    uint16_t* const to = static_cast<uint16_t*>(out);
    if (dtype == DType::bfloat16) {
      for (int64_t i = first; i < last; ++i) to[i] = to_bfloat16(gradient[i] * factor);
    } else {
      for (int64_t i = first; i < last; ++i) to[i] = to_float16(gradient[i] * factor);
    }
  });
}

}  // namespace mrt
