// Selection on the CPU as Python names it: per group, and the pairs of large sets.
#pragma once

#include <pybind11/stl.h>

#include "bindings/facility_location.h"
#include "bindings/running.h"

namespace {

inline int64_t facility_location_grouped(const mrt::SelectionProblem& problem, const mrt::SelectionResult& result,
                                         int threads) {
  return released([&] { return mrt::select_groups(problem, result, threads); });
}

// N candidates, M rows that they cover; weight and quality: 0 where there are none.
inline mrt::StreamProblem stream_problem(const mrt::Features& candidates, const mrt::Features& covered, int64_t N,
                                         int64_t M, const std::string& metric, double radius, Address weight,
                                         Address quality, double maximum) {
  mrt::StreamProblem problem{};
  problem.candidates = candidates;
  problem.covered = covered;
  problem.N = N;
  problem.M = M;
  problem.metric = metric_of(metric);
  problem.radius = radius;
  problem.weight = at<const float>(weight);
  problem.quality = at<const float>(quality);
  problem.maximum = maximum;
  return problem;
}

// One pass over the pairs. `want`: "table" (t and gains), "gains", "largest" or "sparse"; returns the first bad rows, and
// the offsets, ids and values of "sparse".
inline py::tuple stream_pairs(const mrt::StreamProblem& problem, Address best, const std::string& want, Address t,
                              Address out, int threads) {
  mrt::StreamResult::Sparse sparse;
  mrt::StreamResult wanted;
  if (want == "table") wanted.t = at<uint16_t>(t);
  if (want == "table" || want == "gains") {
    wanted.gains = at<int64_t>(out);
  } else if (want == "largest") {
    wanted.largest = at<uint16_t>(out);
  } else if (want == "sparse") {
    wanted.sparse = &sparse;
  } else {
    throw std::invalid_argument("want is unknown here: " + want);
  }
  const mrt::StreamBadRows bad =
      released([&] { return mrt::stream_pairs(problem, at<const uint16_t>(best), wanted, threads); });
  return py::make_tuple(bad.candidates, bad.covered, sparse.offsets, sparse.ids, sparse.values);
}

inline void bind_selection_on_cpu(py::module_& m) {
  bind_selection(m);
  py::class_<mrt::StreamProblem>(m, "StreamProblem", py::module_local())
      .def(py::init(&stream_problem), py::kw_only(), py::arg("candidates"), py::arg("covered"), py::arg("N"),
           py::arg("M"), py::arg("metric"), py::arg("radius"), py::arg("weight"), py::arg("quality"),
           py::arg("maximum"));
  m.def("facility_location_grouped", &facility_location_grouped, py::arg("problem"), py::arg("result"),
        py::arg("threads"));
  m.def("stream_pairs", &stream_pairs, py::arg("problem"), py::arg("best"), py::arg("want"), py::arg("t"),
        py::arg("out"), py::arg("threads"));
}

}  // namespace
