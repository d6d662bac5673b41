// similarity and its gradient as Python names them.
#pragma once

#include <pybind11/stl.h>

#include <optional>

#include "bindings/running.h"
#include "similarity/similarity.h"

namespace {

inline mrt::Matrices matrices(const mrt::Features& first, int64_t batch_stride, int64_t rows_per_group) {
  mrt::Matrices all{};
  all.first = first;
  all.batch_stride = batch_stride;
  all.rows_per_group = rows_per_group;
  return all;
}

// y: None where the rows of a group meet themselves.
inline mrt::SimilarityProblem similarity_problem(int64_t B, Address offsets, const mrt::Matrices& x,
                                                 const std::optional<mrt::Matrices>& y, const std::string& metric,
                                                 double gamma) {
  mrt::SimilarityProblem problem{};
  problem.B = B;
  problem.offsets = at<const int64_t>(offsets);
  problem.x = x;
  problem.y = y ? *y : x;
  problem.is_self = !y;
  problem.metric = metric_of(metric);
  problem.gamma = static_cast<float>(gamma);
  return problem;
}

inline std::pair<int64_t, int64_t> similarity(const mrt::SimilarityProblem& problem, Address s, int threads) {
  const mrt::BadFeatures bad = released([&] { return mrt::similarity(problem, at<void>(s), threads); });
  return {bad.x, bad.y};
}

inline void similarity_gradient(const mrt::SimilarityProblem& problem, Address grad, Address dx, Address dy,
                                int threads) {
  released([&] { mrt::similarity_gradient(problem, at<const void>(grad), at<void>(dx), at<void>(dy), threads); });
}

inline void bind_similarity(py::module_& m) {
  py::class_<mrt::Matrices>(m, "Matrices", py::module_local())
      .def(py::init(&matrices), py::kw_only(), py::arg("first"), py::arg("batch_stride"), py::arg("rows_per_group"));
  py::class_<mrt::SimilarityProblem>(m, "SimilarityProblem", py::module_local())
      .def(py::init(&similarity_problem), py::kw_only(), py::arg("B"), py::arg("offsets"), py::arg("x"), py::arg("y"),
           py::arg("metric"), py::arg("gamma"));
  m.def("similarity", &similarity, py::arg("problem"), py::arg("s"), py::arg("threads"));
  m.def("similarity_gradient", &similarity_gradient, py::arg("problem"), py::arg("grad"), py::arg("dx"), py::arg("dy"),
        py::arg("threads"));
}

}  // namespace
