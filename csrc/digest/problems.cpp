// The seeded problems of digest/problems.h.
#include "digest/problems.h"

#include <algorithm>

#include "common/draws.h"

namespace mrt {
namespace digest {

namespace {

// The first five blocks are what an emulated machine has time for: they hold most of what there is.
constexpr int64_t WIDTHS[] = {48, 17, 129, 3, 100, 8, 384, 16, 31, 64, 1, 256, 32};
constexpr int64_t MOST[] = {6, 33, 17, 48};
constexpr int64_t LARGEST = 260;  // rows in every 20th block: more than are refreshed at every pick, several panels
constexpr int64_t MOST_PICKS = 24;
constexpr double THRESHOLDS[] = {1.0, 0.999, 0.9, 0.5};
constexpr Metric METRICS[] = {Metric::cosine, Metric::dot, Metric::shifted_cosine, Metric::clamped_cosine};
constexpr Fill FILLS[] = {Fill::index, Fill::coverage, Fill::random, Fill::none};

// Numbers of the draws, beyond those of the selection itself.
enum Draw { SIZES = 3, ROWS, VALUES, WEIGHTS };

uint64_t stream_of(Kind kind, int64_t block, Draw draw, int64_t problem) {
  const uint64_t number = draw + 4 * static_cast<uint64_t>(kind);
  return draw_stream(static_cast<uint64_t>(block), number, static_cast<uint64_t>(problem));
}

// 0 … count - 1, from 32 random bits.
int64_t below(uint64_t bits, int64_t count) {
  return static_cast<int64_t>((bits & 0xffffffffu) * static_cast<uint64_t>(count) >> 32);
}

// About normal: the sum of three uniform ones of 21 bits.
int32_t spread(uint64_t h) {
  constexpr uint64_t PART = (1 << 21) - 1;
  return static_cast<int32_t>((h & PART) + (h >> 21 & PART) + (h >> 42 & PART)) - (3 << 20);
}

int32_t sign(uint64_t h) {
  return (static_cast<int32_t>((h >> 40) * 3 >> 24) - 1) * (1 << 20);
}

struct Row {
  enum { plain, grid, zero, copy, near } is;
  int64_t source;  // of a copy or a near-copy, an earlier row
  int shift;       // of what is added to a near-copy
  float scale;     // a power of two
};

Row row_of(uint64_t h, int64_t r, bool is_grid) {
  constexpr float SCALES[] = {0x1p-24f, 0x1p-23f, 0x1p-22f, 0x1p-21f, 0x1p-20f, 0x1p-19f, 0x1p-18f, 0x1p-17f};
  Row row{Row::plain, below(h >> 32, r), static_cast<int>(8 + (h >> 4 & 7)), SCALES[h >> 8 & 7]};
  const uint64_t choice = h & 15;
  if (choice <= 1 && r > 0) {
    row.is = choice == 0 ? Row::copy : Row::near;
  } else if (choice == 3 && (h >> 4 & 3) == 0) {
    row.is = Row::zero;
  } else if (choice == 2 || is_grid) {
    row.is = Row::grid;
  }
  return row;
}

// Rows of one problem: integers first, because copies are made of them, then their scales.
void make_problem(Kind kind, int64_t block, int64_t problem, int64_t N, const Rule& rule, float* x) {
  const uint64_t rows = stream_of(kind, block, ROWS, problem), values = stream_of(kind, block, VALUES, problem);
  const int64_t D = rule.D;
  for (int64_t r = 0; r < N; ++r) {
    const Row row = row_of(draw_key(rows, r), r, rule.is_grid);
    const float* const source = x + row.source * D;
    for (int64_t d = 0; d < D; ++d) {
      const uint64_t h = draw_key(values, r * D + d);
      const float value = row.is == Row::copy    ? source[d]
                          : row.is == Row::near  ? source[d] + static_cast<float>(spread(h) >> row.shift)
                          : row.is == Row::zero  ? 0.0f
                          : row.is == Row::plain ? static_cast<float>(spread(h))
                                                 : static_cast<float>(sign(h));
      x[r * D + d] = value;
    }
  }
  for (int64_t r = 0; r < N; ++r) {
    const float scale = row_of(draw_key(rows, r), r, rule.is_grid).scale;
    for (int64_t d = 0; d < D; ++d) x[r * D + d] *= scale;
  }
}

}  // namespace

Rule rule_of(Kind kind, int64_t block) {
  const bool is_picks = kind == Kind::picks;
  return {WIDTHS[block % 13],
          block % 20 == 3 ? LARGEST : MOST[block % 4],
          block % 5 == 4,
          METRICS[is_picks ? 2 + block % 2 : block % 4],
          FILLS[block / 2 % 4],
          block % 3 == 1,
          block / 3 % 2 == 1 ? Precision::int16 : Precision::exact,
          block % 3 != 1,
          block % 5 == 2,
          THRESHOLDS[block % 4]};
}

void make_sizes(Kind kind, int64_t block, int64_t count, int64_t* offsets, int64_t* k) {
  const uint64_t sizes = stream_of(kind, block, SIZES, 0);
  const int64_t most = rule_of(kind, block).most;
  offsets[0] = 0;
  for (int64_t p = 0; p < count; ++p) {
    const uint64_t h = draw_key(sizes, p);
    const int64_t N = below(h, most + 1);
    const int64_t largest = kind == Kind::kept ? 0 : std::min(MOST_PICKS, kind == Kind::picks ? N : N + 1);
    offsets[p + 1] = offsets[p] + N;
    k[p] = below(h >> 32, largest + 1);
  }
}

void make_rows(Kind kind, int64_t block, int64_t count, const int64_t* offsets, float* x, float* weight, float* quality,
               float* bonus) {
  const Rule rule = rule_of(kind, block);
  for (int64_t p = 0; p < count; ++p) {
    const int64_t first = offsets[p], N = offsets[p + 1] - first;
    make_problem(kind, block, p, N, rule, x + first * rule.D);
    if (!rule.has_weights || kind != Kind::picks) continue;
    const uint64_t weights = stream_of(kind, block, WEIGHTS, p);
    for (int64_t i = 0; i < N; ++i) {
      const uint64_t h = draw_key(weights, i), part = (1 << 22) - 1;
      weight[first + i] = static_cast<float>((h & part) + 1) * 0x1p-22f;
      quality[first + i] = static_cast<float>((h >> 22 & part) + 1) * 0x1p-22f;
      bonus[first + i] = static_cast<float>(h >> 44 & 1023) * 0x1p-14f;
    }
  }
}

}  // namespace digest
}  // namespace mrt
