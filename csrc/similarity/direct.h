// similarity of a small group with itself, straight from its rows: nothing is packed and no row is normalised.
//
// Idea   A group of up to 32 rows lies in the first-level cache once it is read. Products of 4 x 4 rows run along the
//        features, only on and above the diagonal, whose own products are the squared lengths.
// Sums   float32: 16, 8 or 4 interleaved lanes (a register) ascending, then the lanes by halves.
#pragma once

#include "similarity/scores.h"
#include "tile/pack.h"

namespace mrt {
namespace {

constexpr int SIDE = 4;  // rows by rows at a time
constexpr int DOTS = SIDE * SIDE;
constexpr float SHORTEST = 1e-30f, LONGEST = 1e30f;  // squared lengths between them lost nothing to float32's range

#if defined(MRT_AVX512)

constexpr int ROWS_AT_ONCE = SIDE;  // sixteen sums in registers

template <int LOW, int HIGH>
MRT_INLINE __m512 halve_across(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, LOW), _mm512_shuffle_f32x4(a, b, HIGH));
}
template <int LOW, int HIGH>
MRT_INLINE __m512 halve_within(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, LOW), _mm512_shuffle_ps(a, b, HIGH));
}

// out[4 r + c] = the sum of the lanes of sums[r][c]
MRT_INLINE void add_lanes(const __m512 (&sums)[SIDE][SIDE], float* out) {
  __m512 quarter[SIDE];  // four sums of four lanes each
#pragma GCC unroll 4
  for (int c = 0; c < SIDE; ++c)
    quarter[c] = halve_across<0x88, 0xdd>(halve_across<0x44, 0xee>(sums[0][c], sums[1][c]),
                                          halve_across<0x44, 0xee>(sums[2][c], sums[3][c]));
  const __m512 left = halve_within<0x44, 0xee>(quarter[0], quarter[1]);
  const __m512 right = halve_within<0x44, 0xee>(quarter[2], quarter[3]);
  _mm512_store_ps(out, halve_within<0x88, 0xdd>(left, right));
}

#else

constexpr int ROWS_AT_ONCE = 2;  // eight sums in registers

MRT_INLINE void add_lanes(const Floats::Register (&sums)[ROWS_AT_ONCE][SIDE], float* out) {
  float lanes[ROWS_AT_ONCE * SIDE][Floats::WIDTH];
  memcpy(lanes, sums, sizeof lanes);
  for (int i = 0; i < ROWS_AT_ONCE * SIDE; ++i) {
    for (int width = Floats::WIDTH / 2; width > 0; width /= 2)
      for (int v = 0; v < width; ++v) lanes[i][v] += lanes[i][v + width];
    out[i] = lanes[i][0];
  }
}

#endif

// dots[4 r + c] = <a[r], b[c]>; D is a multiple of 16.
MRT_INLINE void dots_of_four(const float* const* a, const float* const* b, int64_t D, float* dots) {
  using Register = Floats::Register;
  for (int first = 0; first < SIDE; first += ROWS_AT_ONCE) {
    Register sums[ROWS_AT_ONCE][SIDE];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS_AT_ONCE; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < SIDE; ++c) sums[r][c] = Floats::zero();
    for (int64_t d = 0; d < D; d += Floats::WIDTH) {
      Register right[SIDE];
#pragma GCC unroll 4
      for (int c = 0; c < SIDE; ++c) memcpy(&right[c], b[c] + d, sizeof right[c]);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS_AT_ONCE; ++r) {
        Register left;
        memcpy(&left, a[first + r] + d, sizeof left);
#pragma GCC unroll 4
        for (int c = 0; c < SIDE; ++c) Floats::multiply_add(left, right[c], sums[r][c]);
      }
    }
    add_lanes(sums, dots + first * SIDE);
  }
}

// Rows of a group where they lie if they are contiguous float32 of a multiple of 16 features, else converted into
// `scratch` [DIRECT_ROWS + 1][ceil16(D)], whose last row, zeros, stands for rows beyond N. The caller zeroed it once.
MRT_INLINE void find_rows(const Features& x, int64_t N, float* scratch, const float** rows) {
  const int64_t stride = round_up(x.columns, PANEL);
  for (int64_t r = 0; r < round_up(N, SIDE); ++r) {
    rows[r] = r < N ? load_row(x, r, scratch + r * stride) : scratch + DIRECT_ROWS * stride;
    if (r < N && rows[r] != scratch + r * stride && x.columns < stride) {
      memcpy(scratch + r * stride, rows[r], x.columns * sizeof(float));
      rows[r] = scratch + r * stride;
    }
  }
}

// The lower blocks of a tile on the diagonal, of which the upper ones are there.
MRT_INLINE void mirror_blocks(float* tile) {
  alignas(64) float mirrored[TILE];
  transpose(reinterpret_cast<const Unit*>(tile), PANEL, reinterpret_cast<Unit*>(mirrored));
  for (int r = SIDE; r < PANEL; ++r) memcpy(tile + r * PANEL, mirrored + r * PANEL, r / SIDE * SIDE * sizeof *tile);
}

// 1 / |x_r| of rows 16 p … 16 p + 15 from the diagonal of their tile; false when a squared length is zero, not finite or
// near the ends of float32's range.
MRT_INLINE bool inverse_lengths(const float* tile, int64_t rows, float* __restrict inverse) {
  bool is_safe = true;
  for (int r = 0; r < PANEL; ++r) {
    const float square = r < rows ? tile[r * (PANEL + 1)] : 1.0f;
    is_safe &= square > SHORTEST && square < LONGEST;
    inverse[r] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(square)));
  }
  return is_safe;
}

MRT_INLINE void scale_tile(const float* rows, const float* columns, float* __restrict tile) {
  for (int r = 0; r < PANEL; ++r)
    for (int c = 0; c < PANEL; ++c) tile[r * PANEL + c] *= rows[r] * columns[c];
}

// Scores of a group of N <= DIRECT_ROWS rows with itself; false, and nothing written, where lengths need more care.
bool direct_similarities(const Features& x, float* scratch, const ScoreMatrix& to) {
  const int64_t N = to.N, D = round_up(x.columns, PANEL), blocks = (N + SIDE - 1) / SIDE;
  const float* rows[DIRECT_ROWS];
  find_rows(x, N, scratch, rows);
  alignas(64) float tiles[2][2][TILE];
  const int64_t products = blocks * (blocks + 1) / 2;
  int64_t done = 0, asked = 0;
  for (int64_t a = 0; a < blocks; ++a) {
    for (int64_t b = a; b < blocks; ++b) {
      alignas(64) float dots[DOTS];
      dots_of_four(rows + a * SIDE, rows + b * SIDE, D, dots);
      float* block = tiles[a * SIDE / PANEL][b * SIDE / PANEL] + a * SIDE % PANEL * PANEL + b * SIDE % PANEL;
      for (int r = 0; r < SIDE; ++r) memcpy(block + r * PANEL, dots + r * SIDE, SIDE * sizeof *dots);
      for (++done; asked < 2 * N * done / products; ++asked)  // the next group, while this one is multiplied
        prefetch_half_row(x, N + asked / 2, asked % 2);
    }
  }
  alignas(64) float inverse[DIRECT_ROWS];
  for (int64_t p = 0; p < num_panels(N); ++p)
    if (!inverse_lengths(tiles[p][p], N - p * PANEL, inverse + p * PANEL)) return false;
  const Store store{to};
  for (int64_t p = 0; p < num_panels(N); ++p) {
    mirror_blocks(tiles[p][p]);
    for (int64_t q = p; q < num_panels(N); ++q) {
      if (to.metric != Metric::dot) scale_tile(inverse + p * PANEL, inverse + q * PANEL, tiles[p][q]);
      Mirrored<float, Store>{store}(p * PANEL, q * PANEL, tiles[p][q]);
    }
  }
  if (to.is_streamed) finish_streams();
  return true;
}

}  // namespace
}  // namespace mrt
