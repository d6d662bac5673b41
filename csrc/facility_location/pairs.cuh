// The pair table of one group on a GPU: made of products of lattice rows, read two pairs at a time.
#pragma once

#include "facility_location/arrays.cuh"
#include "facility_location/select_on_device.h"

namespace mrt {

// max(t - b, 0) of two pairs of 15 bits: bit 15 of each half keeps what the other half borrows, and says which is larger.
__device__ inline unsigned excess_of_two(unsigned t, unsigned b) {
  constexpr unsigned TOPS = 0x80008000;
  const unsigned difference = (t | TOPS) - b, larger = difference & TOPS;
  return difference & (larger - (larger >> 15));
}

__device__ inline uint4 excess_of_eight(const uint4& t, const uint4& b) {
  return make_uint4(excess_of_two(t.x, b.x), excess_of_two(t.y, b.y), excess_of_two(t.z, b.z), excess_of_two(t.w, b.w));
}

// max(t, b) of every pair.
__device__ inline uint4 larger_of_eight(const uint4& t, const uint4& b) {
  const uint4 more = excess_of_eight(t, b);
  return make_uint4(b.x + more.x, b.y + more.y, b.z + more.z, b.w + more.w);
}

// Two numbers of 15 bits add up in 16.
__device__ inline int sum_of_eight(const uint4& v) {
  const unsigned a = v.x + v.y, b = v.z + v.w;
  return static_cast<int>((a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16));
}

// Threads that count one candidate together, a power of two: as many as there are when every candidate has its own.
__device__ inline int lanes_per_candidate(int N, int threads) {
  int lanes = 1;
  while (lanes < WARP_SIZE && 2 * lanes * N <= threads) lanes *= 2;
  return lanes;
}

// Tile `number` of those on and above the diagonal: column c has c + 1 of them.
struct TilePlace {
  int row, column;
  __device__ explicit TilePlace(int number) {
    column = static_cast<int>((sqrtf(8.0F * static_cast<float>(number) + 1.0F) - 1.0F) / 2.0F);
    while (column * (column + 1) / 2 > number) --column;
    while ((column + 1) * (column + 2) / 2 <= number) ++column;
    row = number - column * (column + 1) / 2;
  }
};

class Table {
 public:
  const int N, vectors, stride;  // candidates; vectors of PAIRS rows to cover, of them and of padding

  __device__ Table(int rows, const Arrays&) : N(rows), vectors(ceil_div(rows, PAIRS)), stride(pair_stride(rows)) {}

  // All pairs, a tile to each warp at a time.
  template <class Team>
  __device__ void fill(const Team& team, const Arrays& a, int base) const {
    const int padding = vectors * PAIRS - N, warps = team.size() / WARP_SIZE;
    for (int item = team.rank(); item < N * padding; item += team.size()) {
      a.pairs[item / padding * stride + N + item % padding] = 0;
    }
    for (int item = team.rank() / WARP_SIZE; item < num_tiles(N); item += warps) {
      const TilePlace place(item);
      MatrixTile tile(team.rank() % WARP_SIZE);
      tile.add(a.rows, place.row * TILE, place.column * TILE, N - 1);
#pragma unroll
      for (int e = 0; e < MatrixTile::COUNT; ++e) {
        round_pair(a, base, place.row * TILE + tile.row(e), place.column * TILE + tile.column(e), tile.product(e));
      }
    }
    team.sync();
  }

  template <class Team>
  __device__ void clear_best(const Team& team, const Arrays& a) const {
    for (int v = team.rank(); v < vectors; v += team.size()) best(a)[v] = make_uint4(0, 0, 0, 0);
  }

  // best = max(best, t[j]). Every thread has its own part of it.
  template <class Team>
  __device__ void take(const Team& team, const Arrays& a, int j) const {
    for (int v = team.rank(); v < vectors; v += team.size()) best(a)[v] = larger_of_eight(row(a, j)[v], best(a)[v]);
  }

  // The share of thread `part` of `parts` in what candidate j adds to best.
  __device__ int excess(const Arrays& a, int j, int part, int parts) const {
    int sum = 0;
    for (int v = part; v < vectors; v += parts) sum += sum_of_eight(excess_of_eight(row(a, j)[v], best(a)[v]));
    return sum;
  }

  // What k rows of the order from `first` on (cyclic) cover in vector v.
  __device__ int cover(const Arrays& a, int first, int k, int v) const {
    uint4 most = make_uint4(0, 0, 0, 0);
    for (int n = 0; n < k; ++n) {
      const int place = first + n < N ? first + n : first + n - N;
      most = larger_of_eight(row(a, a.order[place])[v], most);
    }
    return sum_of_eight(most);
  }

  __device__ int at(const Arrays& a, int j, int i) const { return a.pairs[j * stride + i]; }

 private:
  __device__ uint4* best(const Arrays& a) const { return reinterpret_cast<uint4*>(a.best); }
  __device__ const uint4* row(const Arrays& a, int j) const {
    return reinterpret_cast<const uint4*>(a.pairs + j * stride);
  }

  // t of rows i and j in both orders; a tile on the diagonal has each pair twice and writes it once.
  __device__ void round_pair(const Arrays& a, int base, int i, int j, int product) const {
    if (j >= N || i > j) return;
    const float s = __int2float_rn(max(base + product, 0));
    a.pairs[i * stride + j] = steps(__fmul_rn(s, __fmul_rn(a.unit[j], a.quality[i])));
    a.pairs[j * stride + i] = steps(__fmul_rn(s, __fmul_rn(a.unit[i], a.quality[j])));
  }

  static __device__ uint16_t steps(float t) { return static_cast<uint16_t>(min(__float2int_rn(t), STEPS)); }
};

}  // namespace mrt
