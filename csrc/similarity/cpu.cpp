// similarity of packed groups on the CPU: pack a group once, store its tiles.
// Memory per thread: 4 D (ceil16(N) + 32) bytes.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "common/memory.h"
#include "common/parallel.h"
#include "isa/kernels.h"
#include "tile/first_bad_row.h"

namespace mrt {

int64_t similarity_ragged(const Features& x, int64_t num_groups, const int64_t* offsets, Metric metric, void* out,
                          int threads) {
  const Kernels& kernel = kernels();
  const int64_t D = x.columns;
  std::vector<int64_t> starts(num_groups + 1, 0);
  int64_t largest = 0;
  for (int64_t b = 0; b < num_groups; ++b) {
    const int64_t N = offsets[b + 1] - offsets[b];
    starts[b + 1] = starts[b] + N * N;
    largest = std::max(largest, N);
  }
  struct Workspace {
    Buffer buffer;
    float* converted;
    Unit *staged, *panels;
  };
  const auto carve = [&](Arena arena, Workspace& w) {
    w.converted = arena.take<float>(PANEL * D);
    w.staged = arena.take<Unit>(PANEL * round_up(D, PANEL));
    w.panels = arena.take<Unit>(round_up(largest, PANEL) * D);
    return arena.used();
  };
  std::vector<Workspace> workspaces(std::max(threads, 1));
  FirstBadRow bad;
  const int64_t element = x.dtype == DType::float32 ? 4 : 2;
  parallel_for(num_groups, 16, threads, [&](Worker& worker, int64_t b) {
    Workspace& w = workspaces[worker.index()];
    if (w.buffer.size() == 0) {
      Workspace sizes;
      w.buffer = Buffer(carve(Arena(), sizes) + 1);
      carve(Arena(w.buffer.data()), w);
      std::memset(w.staged, 0, PANEL * round_up(D, PANEL) * sizeof(Unit));
    }
    const int64_t N = offsets[b + 1] - offsets[b];
    const bool normalise = metric != Metric::dot;
    if (bad.report(kernel.pack_floats({normalise}, x, offsets[b], N, w.converted, w.staged, w.panels))) return;
    for (int64_t p = 0; p < num_panels(N); ++p) {
      kernel.similarities(w.panels, N, D, p, metric, x.dtype, static_cast<char*>(out) + starts[b] * element);
      worker.checkpoint();
    }
  });
  return bad.row();
}

}  // namespace mrt
