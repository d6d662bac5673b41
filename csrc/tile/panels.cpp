// Packing of whole matrices, a few panels at a time by whoever is free.
#include "tile/panels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "common/parallel.h"
#include "tile/first_bad_row.h"
#include "tile/tile_kernels.h"

namespace mrt {

namespace {

constexpr int TAIL_BITS = 14;  // of the lower integer of a tail; the upper one has 15
constexpr int32_t LARGEST_TAIL = (1 << 29) - 1;

}  // namespace

RowPacker::RowPacker(const Features& x, const Packing& packing)
    : x_(x), packing_(packing), U_(packing.units(x.columns)) {
  const int64_t D = round_up(x.columns, PANEL);
  buffer_ = Buffer(PANEL * (D * sizeof(float) + round_up(U_, PANEL) * sizeof(Unit)));
  std::memset(buffer_.data(), 0, buffer_.size());
  converted_ = reinterpret_cast<float*>(buffer_.data());
  staged_ = reinterpret_cast<Unit*>(converted_ + PANEL * D);
}

int64_t RowPacker::pack(int64_t first, int64_t count, Unit* out) {
  if (!packing_.has_tail()) return run(x_, first, count, out);
  for (int64_t done = 0; done < count; done += PANEL) {
    const int64_t rows = std::min<int64_t>(PANEL, count - done), bad = run(x_, first + done, rows, out + done * U_);
    if (bad >= 0) return bad;
    for (int64_t lane = 0; lane < PANEL; ++lane)
      add_tail(lane, lane < rows ? first + done + lane : -1, out + done * U_);
  }
  return -1;
}

int64_t RowPacker::pack(const int32_t* rows, int64_t count, Unit* out) {
  Features gathered = x_;
  if (gathered_.size() == 0) gathered_ = Buffer(PANEL * x_.columns * element_size(x_.dtype) + 1);
  gathered.data = gathered_.data();
  gathered.row_stride = x_.columns;
  gathered.column_stride = 1;
  for (int64_t done = 0; done < count; done += PANEL) {
    const int64_t few = std::min<int64_t>(PANEL, count - done);
    gather(rows + done, few);
    const int64_t bad = run(gathered, 0, few, out + done * U_);
    if (bad >= 0) return rows[done + bad];
    for (int64_t lane = 0; packing_.has_tail() && lane < PANEL; ++lane)
      add_tail(lane, lane < few ? rows[done + lane] : -1, out + done * U_);
  }
  return -1;
}

int64_t RowPacker::run(const Features& x, int64_t first, int64_t count, Unit* out) {
  const TileKernels& kernel = tile_kernels();
  if (packing_.lattice.radius > 0)
    return kernel.pack_lattice(packing_.lattice, x, first, count, converted_, staged_, out);
  return kernel.pack_floats(packing_.scaling, x, first, count, converted_, staged_, out);
}

void RowPacker::gather(const int32_t* rows, int64_t count) {
  const int64_t size = element_size(x_.dtype), bytes = x_.columns * size;
  for (int64_t r = 0; r < count; ++r) {
    unsigned char* const to = gathered_.data() + r * bytes;
    const char* const from = static_cast<const char*>(x_.data) + std::max(rows[r], 0) * x_.row_stride * size;
    if (rows[r] < 0) {
      std::memset(to, 0, bytes);
    } else if (x_.column_stride == 1) {
      std::memcpy(to, from, bytes);
    } else {
      for (int64_t d = 0; d < x_.columns; ++d) std::memcpy(to + d * size, from + d * x_.column_stride * size, size);
    }
  }
}

void RowPacker::add_tail(int64_t lane, int64_t row, Unit* panel) const {
  int16_t pair[2] = {0, 0};
  if (row >= 0 && packing_.tail.side == Tail::Side::x) {
    pair[0] = -(1 << TAIL_BITS);
    pair[1] = -1;
  } else if (row >= 0) {
    const double exact = std::rint(packing_.tail.squares[row] * packing_.tail.scale);
    const int32_t h = exact < LARGEST_TAIL ? static_cast<int32_t>(exact) : LARGEST_TAIL;  // beyond: rows to be refused
    pair[0] = static_cast<int16_t>(h >> TAIL_BITS);
    pair[1] = static_cast<int16_t>(h & ((1 << TAIL_BITS) - 1));
  }
  std::memcpy(panel + (U_ - 1) * PANEL + lane, pair, sizeof pair);
}

template <class Pack>
void PackedRows::fill(const Features& x, int64_t rows, const Packing& packing, int threads, const Pack& pack) {
  constexpr int64_t CHUNK = 4;  // panels packed at a time: small enough to share evenly, large enough to prefetch
  std::vector<std::unique_ptr<RowPacker>> packers(std::max(threads, 1));
  FirstBadRow bad;
  parallel_for((num_panels(rows) + CHUNK - 1) / CHUNK, 1, threads, [&](Worker& worker, int64_t chunk) {
    std::unique_ptr<RowPacker>& mine = packers[worker.index()];
    if (mine == nullptr) mine = std::make_unique<RowPacker>(x, packing);
    const int64_t first = chunk * CHUNK * PANEL, count = std::min(CHUNK * PANEL, rows - first);
    bad.report(pack(*mine, first, count, reinterpret_cast<Unit*>(buffer_.data()) + first * U_));
  });
  bad_row_ = bad.row();
}

PackedRows::PackedRows(const Features& x, int64_t rows, const Packing& packing, int threads)
    : U_(packing.units(x.columns)), buffer_(bytes(packing, rows, x.columns) + 1) {
  fill(x, rows, packing, threads,
       [](RowPacker& packer, int64_t first, int64_t count, Unit* out) { return packer.pack(first, count, out); });
}

PackedRows::PackedRows(const Features& x, const std::vector<int32_t>& order, const Packing& packing, int threads)
    : U_(packing.units(x.columns)), buffer_(bytes(packing, static_cast<int64_t>(order.size()), x.columns) + 1) {
  fill(x, static_cast<int64_t>(order.size()), packing, threads,
       [&](RowPacker& packer, int64_t first, int64_t count, Unit* out) {
         return packer.pack(order.data() + first, count, out);
       });
}

}  // namespace mrt
