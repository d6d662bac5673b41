// The gradient of similarity on the CPU: what some rows receive from others, one block at a time.
//
//   pulled[r] = sum over n of w[r][n] y[n],   w = dL/ds ds/dproduct
//
// Idea   it is one more product for the tile loop: w, gathered from the gradient of the scores as panels of rows, times
//        the others as panels of features. Where rows meet themselves w + its transpose is gathered at once.
// Sums   float32, n ascending, whatever the blocks.
#pragma once

#include "similarity/scores.h"
#include "tile/pack.h"

namespace mrt {
namespace {

// Sixteen features of a row, zeros beyond the last.
struct Part {
  alignas(64) float x[PANEL];
  MRT_INLINE Part(const float* in, int64_t columns) {
    if (columns >= PANEL) {
      memcpy(x, in, sizeof x);
    } else {
      for (int c = 0; c < PANEL; ++c) x[c] = c < columns ? in[c] : 0.0f;
    }
  }
};

// Rows first … first + count - 1, unit rows if `normalise`, as panels of 16 features: [ceil(D / 16)][count][16].
// `scratch` holds D floats. Returns the first row that holds NaN or infinity, or -1.
void pack_features(const Features& x, int64_t first, int64_t count, bool normalise, float* scratch,
                   float* __restrict out) {
  const int64_t D = x.columns;
  for (int64_t r = 0; r < count; ++r) {
    const float* in = load_row(x, first + r, scratch);
    const double square = normalise ? squared_norm(in, D) : 1.0, scale = square > 0 ? 1.0 / std::sqrt(square) : 0.0;
    for (int64_t d = 0; d < D; d += PANEL) {
      const Part part(in + d, D - d);
      float* const panel = out + d * count + r * PANEL;
      for (int c = 0; c < PANEL; ++c) panel[c] = static_cast<float>(part.x[c] * scale);
    }
    prefetch_half_row(x, first + count + r, 0), prefetch_half_row(x, first + count + r, 1);
  }
}

// Up to 16 x 16 entries of the gradient from (row, column), the rest zero.
MRT_INLINE void load_block(const Pull& p, int64_t row, int64_t rows, int64_t column, int64_t columns,
                           float* __restrict block) {
  const Features grad{p.grad, p.dtype, p.stride, 1, columns};
  if (rows < PANEL || columns < PANEL) memset(block, 0, TILE * sizeof *block);
  for (int64_t r = 0; r < rows; ++r) {
    Features at = grad;
    at.data = static_cast<const char*>(grad.data) + ((row + r) * p.stride + column) * element_size(p.dtype);
    const float* in = load_row(at, 0, block + r * PANEL);
    if (in != block + r * PANEL) memcpy(block + r * PANEL, in, columns * sizeof *in);
  }
}

// slopes[panel][n][r] = dL/ds of row r and other n, from either side of the matrix or both.
MRT_INLINE void gather_slopes(const Pull& p) {
  alignas(64) float block[TILE], turned[TILE];
  const float scale = p.metric == Metric::shifted_cosine ? 0.5f : 1.0f;
  for (int64_t r = 0; r < p.rows; r += PANEL) {
    const int64_t rows = p.rows - r < PANEL ? p.rows - r : PANEL;
    for (int64_t n = 0; n < p.count; n += PANEL) {
      const int64_t others = p.count - n < PANEL ? p.count - n : PANEL;
      float* out = p.slopes + r * p.count + n * PANEL;
      if (p.by_row) {
        load_block(p, p.row0 + r, rows, p.other0 + n, others, block);
        transpose(reinterpret_cast<const Unit*>(block), PANEL, reinterpret_cast<Unit*>(turned));
      }
      if (p.by_column) load_block(p, p.other0 + n, others, p.row0 + r, rows, block);
      const float* first = p.by_row ? turned : block;
      for (int64_t i = 0; i < others * PANEL; ++i)
        out[i] = p.by_row && p.by_column ? (turned[i] + block[i]) * scale : first[i] * scale;
    }
  }
}

// slopes *= ds/dproduct, for metrics where it depends on the product.
struct Slope {
  const Pull& p;

  MRT_INLINE void operator()(int64_t other, int64_t row, const float* tile) const {
    const int64_t n = other - p.other0, others = p.count - n < PANEL ? p.count - n : PANEL;
    float* slopes = p.slopes + (row - p.row0) * p.count + n * PANEL;
    if (p.metric == Metric::clamped_cosine) {
      for (int64_t i = 0; i < others * PANEL; ++i) slopes[i] = tile[i] > 0.0f ? slopes[i] : 0.0f;
    } else {
      for (int64_t i = 0; i < others * PANEL; ++i) slopes[i] *= -2.0f * p.gamma * exponential(-p.gamma * tile[i]);
    }
  }
};

MRT_INLINE void weigh_slopes(const Pull& p) {
  const Panels others{p.other_panels, p.other0 / PANEL, p.other0 / PANEL + num_panels(p.count)};
  const Panels rows{p.row_panels, p.row0 / PANEL, p.row0 / PANEL + num_panels(p.rows)};
  if (p.metric == Metric::clamped_cosine) return tiles<Floats>(others, rows, p.D, false, Slope{p});
  tiles<Differences>(others, rows, p.D, false, Slope{p});
  for (int64_t r = 0; r < p.rows; r += PANEL)
    for (int64_t n = 0; n < p.count; ++n)
      for (int64_t c = 0; c < PANEL; ++c) p.sums[r + c] += p.slopes[r * p.count + n * PANEL + c];
}

struct Accumulate {
  float* pulled;
  int64_t rows;  // a multiple of 16

  MRT_INLINE void operator()(int64_t row, int64_t feature, const float* tile) const {
    float* out = pulled + feature * rows + row * PANEL;
    for (int i = 0; i < TILE; ++i) out[i] += tile[i];
  }
};

// sums and pulled += what `count` others pass to `rows` rows.
void pull(const Pull& p) {
  gather_slopes(p);
  if (p.row_panels != nullptr) weigh_slopes(p);
  const Panels slopes{reinterpret_cast<const Unit*>(p.slopes), 0, num_panels(p.rows)};
  const Panels features{reinterpret_cast<const Unit*>(p.features), 0, num_panels(p.D)};
  tiles<Floats>(slopes, features, p.count, false, Accumulate{p.pulled, round_up(p.rows, PANEL)});
}

// pulled = (pulled - a <a, pulled>) / |x| with the unit row a: the way back through the normalisation.
MRT_INLINE void project_row(const float* in, int64_t D, int64_t stride, float* __restrict pulled) {
  const double square = squared_norm(in, D), inverse = square > 0 ? 1.0 / std::sqrt(square) : 0.0;
  float lanes[PANEL] = {};
  for (int64_t d = 0; d < D; d += PANEL) {
    const Part part(in + d, D - d);
    const float* from = pulled + d / PANEL * stride;
    for (int c = 0; c < PANEL; ++c) lanes[c] += static_cast<float>(part.x[c] * inverse) * from[c];
  }
  float along = 0.0f;
  for (const float lane : lanes) along += lane;
  for (int64_t d = 0; d < D; d += PANEL) {
    const Part part(in + d, D - d);
    float* const to = pulled + d / PANEL * stride;
    for (int c = 0; c < PANEL; ++c) {
      const float across = to[c] - static_cast<float>(part.x[c] * inverse) * along;
      to[c] = static_cast<float>(across * inverse);
    }
  }
}

// dL/dx of `rows` rows from row0 of x, from what they received.
void finish_gradient(const Pull& p, const Features& x, float* scratch, void* dx) {
  const int64_t D = p.D, stride = round_up(p.rows, PANEL) * PANEL;
  for (int64_t r = 0; r < p.rows; ++r) {
    float* const pulled = p.pulled + r * PANEL;  // feature d at (d / 16) * stride + d % 16
    if (p.metric != Metric::dot) {
      const float* in = load_row(x, p.row0 + r, scratch);
      if (p.metric != Metric::rbf) project_row(in, D, stride, pulled);
      for (int64_t d = 0; d < D && p.metric == Metric::rbf; ++d) {
        float& to = pulled[d / PANEL * stride + d % PANEL];
        to = static_cast<float>(p.sums[r]) * in[d] - to;
      }
    }
    for (int64_t d = 0; d < D; d += PANEL)
      store_row(pulled + d / PANEL * stride, D - d < PANEL ? D - d : PANEL, p.dtype, false, dx, (p.row0 + r) * D + d);
  }
}

}  // namespace
}  // namespace mrt
