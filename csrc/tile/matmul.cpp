// Blocks of a matrix product: everyone packs a part of a, then whoever is free takes a block of the output, packs 32
// columns of one chunk into its first-level cache and lets the rows of the block pass over them.
#include <algorithm>

#include "common/parallel.h"
#include "tile/matmul_problem.h"
#include "tile/tile_kernels.h"

namespace mrt {

namespace {

constexpr int64_t CHUNK = 256;        // units that are summed from zero: 32 columns of them are 32 KiB
constexpr int64_t MOST_PANELS = 40;   // of rows that pass over the columns: 640 KiB of the second-level cache
constexpr int64_t MOST_COLUMNS = 16;  // pairs of panels in a block: its output stays in the second-level cache
constexpr int64_t BLOCKS = 6;         // for each thread at least, so that all end together

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// The size of equal parts of `count`, none above `most`.
int64_t even(int64_t count, int64_t most) {
  return std::max<int64_t>(ceil_div(count, std::max<int64_t>(ceil_div(count, most), 1)), 1);
}

// The chunks of k, which depend on K alone, and how much is done at a time.
struct Plan {
  int64_t U, chunks, chunk;          // units of a row, chunks of them, units of a chunk
  int64_t lanes, panels;             // rows of a panel of a, panels
  int64_t column_pairs;              // pairs of panels of b
  int64_t part_panels, part_chunks;  // of a, packed together
  int64_t block, wide;               // panels of rows, pairs of panels of columns in a block
  int64_t units(int64_t c) const { return std::min(chunk, U - c * chunk); }
};

Plan plan_of(const MatmulProblem& problem, int threads) {
  Plan plan{};
  plan.U = problem.is_half ? ceil_div(problem.K, 2) : problem.K;
  plan.chunks = std::max<int64_t>(ceil_div(plan.U, CHUNK), 1);
  plan.chunk = std::max<int64_t>(round_up(ceil_div(plan.U, plan.chunks), PANEL), PANEL);
  plan.lanes = tile_kernels().products(problem.is_half).lanes;
  plan.panels = ceil_div(problem.M, plan.lanes);
  plan.column_pairs = ceil_div(problem.N, COLUMNS);
  const int64_t most = MATMUL_WORKSPACE / (plan.chunk * PANEL * static_cast<int64_t>(sizeof(Unit)));
  plan.part_panels = even(plan.panels, std::max(most / plan.chunks, std::min(most, 2 * MOST_PANELS)));
  plan.part_chunks = even(plan.chunks, std::max<int64_t>(most / plan.part_panels, 1));
  plan.block = even(plan.part_panels, MOST_PANELS);
  const int64_t row_blocks = ceil_div(plan.part_panels, plan.block);
  plan.wide = std::clamp<int64_t>(plan.column_pairs * row_blocks / (BLOCKS * threads), 1, MOST_COLUMNS);
  return plan;
}

// Panels p0 … p1 - 1 of a over chunks c0 … c1 - 1, packed chunk after chunk.
struct Part {
  int64_t p0, p1, c0, c1;
  Unit* units;
  Unit* panel(const Plan& plan, int64_t p, int64_t c) const {
    return units + ((c - c0) * (p1 - p0) + p - p0) * plan.chunk * PANEL;
  }
};

void pack_rows(const MatmulProblem& problem, const Plan& plan, const Part& part, int threads) {
  constexpr int64_t TOGETHER = 4;  // panels: whole cache lines where rows lie across memory
  const auto pack = tile_kernels().products(problem.is_half).pack;
  const int64_t groups = ceil_div(part.p1 - part.p0, TOGETHER);
  parallel_for(groups * (part.c1 - part.c0), 1, threads, [&](Worker&, int64_t task) {
    const int64_t c = part.c0 + task / groups, first = part.p0 + task % groups * TOGETHER;
    for (int64_t p = first; p < std::min(part.p1, first + TOGETHER); ++p)  // whole registers; a panel needs `lanes`
      pack(problem.a, p * plan.lanes, std::min<int64_t>(PANEL, problem.M - p * plan.lanes), c * plan.chunk,
           plan.units(c), part.panel(plan, p, c));
  });
}

// Units of chunk c of the pair of panels q of b, where they lie.
Upcoming upcoming(const MatmulProblem& problem, const Plan& plan, int64_t q, int64_t c) {
  const Features& b = problem.b;
  const int64_t per = problem.is_half ? 2 : 1, n = q * COLUMNS, k = c * plan.chunk * per, size = element_size(b.dtype);
  const int64_t columns = std::min<int64_t>(COLUMNS, problem.N - n),
                units = std::min(plan.units(c) * per, problem.K - k);
  const char* const data = static_cast<const char*>(b.data) + (n * b.row_stride + k * b.column_stride) * size;
  if (b.column_stride == 1) return {data, columns, units * size, b.row_stride * size};
  return {data, units, columns * b.row_stride * size, b.column_stride * size};
}

void multiply_part(const MatmulProblem& problem, const Plan& plan, const Part& part, int threads) {
  const ProductKernels& kernel = tile_kernels().products(problem.is_half);
  const int64_t column_blocks = ceil_div(plan.column_pairs, plan.wide);
  parallel_for(ceil_div(part.p1 - part.p0, plan.block) * column_blocks, 1, threads, [&](Worker& worker, int64_t task) {
    alignas(64) Unit columns[CHUNK * COLUMNS];
    const int64_t first = part.p0 + task / column_blocks * plan.block, last = std::min(part.p1, first + plan.block);
    const int64_t q0 = task % column_blocks * plan.wide, q1 = std::min(plan.column_pairs, q0 + plan.wide);
    for (int64_t c = part.c0; c < part.c1; ++c) {
      for (int64_t q = q0; q < q1; ++q) {
        const int64_t n = q * COLUMNS, count = std::min<int64_t>(COLUMNS, problem.N - n), units = plan.units(c);
        for (int64_t side = 0; side < 2; ++side) {
          const int64_t lanes = std::clamp<int64_t>(count - side * PANEL, 0, PANEL);
          kernel.pack(problem.b, n + side * PANEL, lanes, c * plan.chunk, units, columns + side * units * PANEL);
        }
        const ProductTarget target{problem.out + first * plan.lanes * problem.stride + n,
                                   problem.stride,
                                   problem.M - first * plan.lanes,
                                   count,
                                   problem.bias == nullptr ? nullptr : problem.bias + n,
                                   problem.adds || c > 0};
        const bool is_last = q + 1 == q1;
        const Upcoming next = is_last && c + 1 == part.c1
                                  ? Upcoming{}
                                  : upcoming(problem, plan, is_last ? q0 : q + 1, is_last ? c + 1 : c);
        kernel.multiply(part.panel(plan, first, c), plan.chunk * PANEL, last - first, columns, units, target, next);
      }
      worker.checkpoint();
    }
  });
}

}  // namespace

void matmul(const MatmulProblem& problem, void* workspace, int threads) {
  const Plan plan = plan_of(problem, std::max(threads, 1));
  for (int64_t p = 0; p < plan.panels; p += plan.part_panels)
    for (int64_t c = 0; c < plan.chunks; c += plan.part_chunks) {
      const Part part{p, std::min(plan.panels, p + plan.part_panels), c, std::min(plan.chunks, c + plan.part_chunks),
                      static_cast<Unit*>(workspace)};
      pack_rows(problem, plan, part, threads);
      multiply_part(problem, plan, part, threads);
    }
}

}  // namespace mrt
