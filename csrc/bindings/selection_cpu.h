// Per-group selection on the CPU as Python names it.
#pragma once

#include <pybind11/stl.h>

#include "bindings/facility_location.h"
#include "bindings/running.h"

namespace {

inline int64_t facility_location_grouped(const mrt::SelectionProblem& problem, const mrt::SelectionResult& result,
                                         int threads) {
  return released([&] { return mrt::select_groups(problem, result, threads); });
}

inline void bind_selection_on_cpu(py::module_& m) {
  bind_selection(m);
  m.def("facility_location_grouped", &facility_location_grouped, py::arg("problem"), py::arg("result"),
        py::arg("threads"));
}

}  // namespace
