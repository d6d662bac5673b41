// neighbors and components as Python names them.
#pragma once

#include <pybind11/stl.h>

#include <optional>

#include "bindings/running.h"
#include "neighbors/neighbors.h"

namespace {

inline mrt::Precision precision_of(const std::string& name) {
  return named<mrt::Precision>(
      "precision", name,
      {{"exact", mrt::Precision::exact}, {"int16", mrt::Precision::int16}, {"float32", mrt::Precision::float32}});
}

// group_x, group_y: addresses, 0 where there are none.
inline mrt::Exclusion exclusion(bool exclude_self, Address group_x, Address group_y) {
  mrt::Exclusion excluded{};
  excluded.self = exclude_self;
  excluded.group_x = at<const int64_t>(group_x);
  excluded.group_y = at<const int64_t>(group_y);
  return excluded;
}

// M rows of x among N rows of y; y None: x itself.
inline mrt::NeighborsProblem neighbors_problem(const mrt::Features& x, const std::optional<mrt::Features>& y, int64_t M,
                                               int64_t N, int64_t k, const std::string& metric, double gamma,
                                               const std::string& precision, double radius,
                                               const mrt::Exclusion& exclusion) {
  mrt::NeighborsProblem problem{};
  problem.x = x;
  problem.y = y ? *y : x;
  problem.M = M;
  problem.N = N;
  problem.is_self = !y;
  problem.k = k;
  problem.metric = metric_of(metric);
  problem.gamma = gamma;
  problem.precision = precision_of(precision);
  problem.radius = radius;
  problem.exclude_self = exclusion.self;
  problem.group_x = exclusion.group_x;
  problem.group_y = exclusion.group_y;
  return problem;
}

inline std::pair<int64_t, int64_t> neighbors(const mrt::NeighborsProblem& problem, Address ids, Address scores,
                                             const py::object& progress, int threads) {
  const mrt::NeighborsResult result{at<int64_t>(ids), at<float>(scores)};
  const Listening listening(progress);
  const mrt::BadRows bad = released([&] { return mrt::neighbors(problem, result, threads); });
  listening.finish();
  return {bad.x, bad.y};
}

// cell [N], probes [M, num_probes]: addresses of int64.
inline mrt::Cells cells(int64_t count, Address cell, int64_t num_probes, Address probes) {
  mrt::Cells found{};
  found.count = count;
  found.cell = at<const int64_t>(cell);
  found.num_probes = num_probes;
  found.probes = at<const int64_t>(probes);
  return found;
}

inline void neighbors_in_cells(const mrt::NeighborsProblem& problem, const mrt::Cells& cells, Address ids,
                               Address scores, const py::object& progress, int threads) {
  const mrt::NeighborsResult result{at<int64_t>(ids), at<float>(scores)};
  const Listening listening(progress);
  released([&] {
    mrt::neighbors_in_cells(problem, cells, result, threads);
    return 0;
  });
  listening.finish();
}

// num_groups groups between offsets, address of int64 [num_groups + 1]; 0: all N rows are one.
inline int64_t components(const mrt::Features& x, int64_t N, Address offsets, int64_t num_groups, double threshold,
                          double radius, Address labels, const py::object& progress, int threads) {
  const Listening listening(progress);
  auto* const out = at<int64_t>(labels);
  const int64_t bad = released([&] {
    return offsets == 0
               ? mrt::components(x, N, threshold, radius, out, threads)
               : mrt::components_of_groups(x, at<const int64_t>(offsets), num_groups, threshold, radius, out, threads);
  });
  listening.finish();
  return bad;
}

inline void bind_neighbors(py::module_& m) {
  py::class_<mrt::Exclusion>(m, "Exclusion", py::module_local())
      .def(py::init(&exclusion), py::kw_only(), py::arg("exclude_self"), py::arg("group_x"), py::arg("group_y"));
  py::class_<mrt::NeighborsProblem>(m, "NeighborsProblem", py::module_local())
      .def(py::init(&neighbors_problem), py::kw_only(), py::arg("x"), py::arg("y"), py::arg("M"), py::arg("N"),
           py::arg("k"), py::arg("metric"), py::arg("gamma"), py::arg("precision"), py::arg("radius"),
           py::arg("exclusion"));
  m.def("neighbors", &neighbors, py::arg("problem"), py::arg("ids"), py::arg("scores"), py::arg("progress"),
        py::arg("threads"));
  py::class_<mrt::Cells>(m, "Cells", py::module_local())
      .def(py::init(&cells), py::kw_only(), py::arg("count"), py::arg("cell"), py::arg("num_probes"),
           py::arg("probes"));
  m.def("neighbors_in_cells", &neighbors_in_cells, py::arg("problem"), py::arg("cells"), py::arg("ids"),
        py::arg("scores"), py::arg("progress"), py::arg("threads"));
  m.def("components", &components, py::kw_only(), py::arg("x"), py::arg("N"), py::arg("offsets"), py::arg("num_groups"),
        py::arg("threshold"), py::arg("radius"), py::arg("labels"), py::arg("progress"), py::arg("threads"));
}

}  // namespace
