// The tile loop: products of packed rows, 16 x 16 at a time, each tile handed to an epilogue. There is one such loop.
//
// A tile is panel p of the rows times panel q of the columns; its sums stay in registers over CHUNK units. The columns
// of PANELS panels stay in the first-level cache, CHUNK units at a time, while the rows stream past them from the
// second: the caller passes ranges of rows that fit there. Sums: units ascending; Pairs exact in int32, Floats one
// float32.
//
// An epilogue has operator()(row, column, tile): tile[16][16] are the products of rows row … row + 15 and columns
// column … column + 15, row-major; rows and columns beyond the data are products with zeros.
#pragma once

#include "tile/panels.h"
#include "tile/vector.h"

namespace mrt {
namespace {

constexpr int TILE = PANEL * PANEL;
constexpr int64_t CHUNK = 192;     // units: two panels of them are 24 KiB, which a first-level cache holds
constexpr int64_t MOST_ROWS = 64;  // panels of rows whose unfinished tiles wait between chunks

// tiles[part][r][c] += sum over units first … last - 1 of a[u][r] * b[part][u][c], for PARTS panels of columns that lie
// one after the other, U units apart; sums begin at zero with unit 0.
template <class Kind, int PARTS>
MRT_INLINE void multiply(const Unit* __restrict a, const Unit* __restrict b, int64_t U, int64_t begin, int64_t end,
                         typename Kind::Sum* __restrict tiles) {
  constexpr int ROWS = Kind::ROWS * Kind::PANELS / PARTS, VECTORS = PANEL / Kind::WIDTH, WIDE = PARTS * VECTORS;
  for (int first = 0; first < PANEL; first += ROWS) {
    typename Kind::Register sum[ROWS][WIDE];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < WIDE; ++v) sum[r][v] = Kind::zero();
    if (begin > 0) {
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; ++v)
          sum[r][v] = Kind::restore(tiles + v / VECTORS * TILE + (first + r) * PANEL + v % VECTORS * Kind::WIDTH);
    }
#pragma GCC unroll 1
    for (int64_t u = begin; u < end; ++u) {
      typename Kind::Register right[WIDE];
#pragma GCC unroll 4
      for (int v = 0; v < WIDE; ++v)
        right[v] = Kind::load(b + (v / VECTORS * U + u) * PANEL + v % VECTORS * Kind::WIDTH);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const typename Kind::Register left = Kind::broadcast(a + u * PANEL + first + r);
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; ++v) Kind::multiply_add(left, right[v], sum[r][v]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < WIDE; ++v)
        Kind::store(tiles + v / VECTORS * TILE + (first + r) * PANEL + v % VECTORS * Kind::WIDTH, sum[r][v]);
  }
}

// Asks for one part in `parts` of the columns that come next, so that they are in the cache when their turn comes.
MRT_INLINE void prefetch_part(const Unit* next, int64_t units, int64_t part, int64_t parts) {
  for (int64_t u = units * part / parts; u < units * (part + 1) / parts; ++u)
    __builtin_prefetch(next + u * PANEL, 0, 2);
}

// Which tiles are computed: panel p of the rows with `parts` panels of columns from q on.
struct Everything {
  MRT_INLINE bool operator()(int64_t, int64_t, int) const { return true; }
};

// At most MOST_ROWS panels of `rows` with every panel of `columns` that is wanted; see tiles.
template <class Kind, class Epilogue, class Wanted = Everything>
MRT_INLINE void block_of_tiles(const Panels& rows, const Panels& columns, int64_t U, bool is_upper,
                               const Epilogue& epilogue, const Wanted& is_wanted = {}) {
  alignas(64) typename Kind::Sum waiting[MOST_ROWS][Kind::PANELS][TILE];
  for (int64_t q = columns.first; q < columns.last; q += Kind::PANELS) {
    const int parts = q + Kind::PANELS <= columns.last ? Kind::PANELS : 1;
    const int64_t last = is_upper && q + parts < rows.last ? q + parts : rows.last, left = columns.last - q - parts;
    const Unit* const b = columns.units + q * U * PANEL;
    for (int64_t begin = 0; begin == 0 || begin < U; begin += CHUNK) {
      const int64_t end = U - begin < CHUNK ? U : begin + CHUNK;
      for (int64_t p = rows.first; p < last; ++p) {
        const Unit* const a = rows.units + p * U * PANEL;
        typename Kind::Sum* const products = waiting[U > CHUNK ? p - rows.first : 0][0];
        if (begin == 0 && left > 0)
          prefetch_part(b + parts * U * PANEL, (left < parts ? left : parts) * U, p - rows.first, last - rows.first);
        if (!is_wanted(p, q, parts)) continue;
        if (parts == Kind::PANELS) {
          multiply<Kind, Kind::PANELS>(a, b, U, begin, end, products);
        } else {
          multiply<Kind, 1>(a, b, U, begin, end, products);
        }
        for (int part = 0; part < parts && end == U; ++part)
          if (!is_upper || q + part >= p) epilogue(p * PANEL, (q + part) * PANEL, products + part * TILE);
      }
    }
  }
}

// Every panel of `rows` with every panel of `columns`. With is_upper the two are the same matrix and only tiles on and
// above its diagonal (q >= p) are computed and handed over.
template <class Kind, class Epilogue>
MRT_INLINE void tiles(const Panels& rows, const Panels& columns, int64_t U, bool is_upper, const Epilogue& epilogue) {
  for (int64_t p = rows.first; p < rows.last; p += MOST_ROWS) {
    const int64_t last = rows.last - p < MOST_ROWS ? rows.last : p + MOST_ROWS;
    block_of_tiles<Kind>({rows.units, p, last}, columns, U, is_upper, epilogue);
  }
}

// Hands every tile above the diagonal on twice: as it is, and transposed to its mirror image below.
template <class Sum, class Epilogue>
struct Mirrored {
  const Epilogue& epilogue;

  MRT_INLINE void operator()(int64_t row, int64_t column, const Sum* tile) const {
    epilogue(row, column, tile);
    if (row == column) return;
    alignas(64) Sum mirrored[TILE];
    transpose(reinterpret_cast<const Unit*>(tile), PANEL, reinterpret_cast<Unit*>(mirrored));
    epilogue(column, row, mirrored);
  }
};

// All pairs of N rows of one packed block with each other, of which this call takes panel p against panels q >= p.
template <class Kind, class Epilogue>
MRT_INLINE void panel_row(const Unit* panels, int64_t N, int64_t U, int64_t p, const Epilogue& epilogue) {
  const Mirrored<typename Kind::Sum, Epilogue> both{epilogue};
  tiles<Kind>({panels, p, p + 1}, {panels, p, num_panels(N)}, U, false, both);
}

}  // namespace
}  // namespace mrt
