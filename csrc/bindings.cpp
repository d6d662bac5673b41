// The Python face of csrc: addresses, sizes and strides come in under their names, sentences go out. What is bound of each
// operation stands in bindings/; only these files and bindings_cuda.cpp know pybind11.
#include <pybind11/stl.h>

#include <string>
#include <thread>

#include "bindings/cross_entropy.h"
#include "bindings/digest.h"
#include "bindings/large_selection.h"
#include "bindings/linear_cross_entropy.h"
#include "bindings/neighbors.h"
#include "bindings/selection_cpu.h"
#include "bindings/similarity.h"
#include "bindings/tile.h"
#include "isa/path.h"

namespace {

#if defined(__clang__)
constexpr const char* COMPILER = "";  // clang's __VERSION__ names it
#else
constexpr const char* COMPILER = "gcc ";
#endif

py::list isas() {
  const mrt::Path* all[mrt::MOST_PATHS + 1];
  mrt::available_paths(all);
  py::list names;
  for (const mrt::Path** path = all; *path != nullptr; ++path) names.append((*path)->name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of mrtkern; the public functions call them through mrtkern/ops/<op>/cpu.py.";
  mrt::set_interrupt_poll(python_signals);
  m.def("isa", [] { return mrt::path_in_use().name; }, "Instruction set in use.");
  m.def("isas", &isas, "Instruction sets that this machine has, widest first.");
  m.def("hardware_threads", [] { return std::thread::hardware_concurrency(); });
  m.def("built_with", [] { return std::string(COMPILER) + __VERSION__; }, "Version of the compiler.");
  bind_features(m);
  bind_tile(m);
  bind_cross_entropy(m);
  bind_linear_cross_entropy(m);
  bind_neighbors(m);
  bind_selection_on_cpu(m);
  bind_large_selection(m);
  bind_similarity(m);
  bind_digest(m);
}
