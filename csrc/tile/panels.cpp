// Packing of whole matrices, a few panels at a time by whoever is free.
#include "tile/panels.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/parallel.h"
#include "tile/first_bad_row.h"
#include "tile/tile_kernels.h"

namespace mrt {

PackedRows::PackedRows(const Features& x, int64_t rows, const Packing& packing, int threads)
    : U_(units_per_row(packing, x.columns)), buffer_(bytes(packing, rows, x.columns) + 1) {
  constexpr int64_t CHUNK = 4;  // panels packed at a time: small enough to share evenly, large enough to prefetch
  const TileKernels& kernel = tile_kernels();
  const int64_t stride = round_up(U_, PANEL);
  std::vector<Buffer> scratch(std::max(threads, 1));
  FirstBadRow bad;
  parallel_for((num_panels(rows) + CHUNK - 1) / CHUNK, 1, threads, [&](Worker& worker, int64_t chunk) {
    Buffer& mine = scratch[worker.index()];
    if (mine.size() == 0) {
      mine = Buffer(PANEL * (round_up(x.columns, PANEL) * sizeof(float) + stride * sizeof(Unit)));
      std::memset(mine.data(), 0, mine.size());
    }
    float* const converted = reinterpret_cast<float*>(mine.data());
    Unit* const staged = reinterpret_cast<Unit*>(mine.data()) + PANEL * round_up(x.columns, PANEL);
    const int64_t first = chunk * CHUNK * PANEL, count = std::min(CHUNK * PANEL, rows - first);
    Unit* const out = reinterpret_cast<Unit*>(buffer_.data()) + first * U_;
    bad.report(packing.lattice.radius > 0
                   ? kernel.pack_lattice(packing.lattice, x, first, count, converted, staged, out)
                   : kernel.pack_floats(packing.scaling, x, first, count, converted, staged, out));
  });
  bad_row_ = bad.row();
}

}  // namespace mrt
