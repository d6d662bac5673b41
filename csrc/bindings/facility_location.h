// Per-group selection as Python names it, for the CPU and for devices.
#pragma once

#include "bindings/arguments.h"
#include "facility_location/facility_location.h"

namespace {

inline mrt::Fill fill_of(const std::string& name) {
  return named<mrt::Fill>("fill", name,
                          {{"index", mrt::Fill::index},
                           {"coverage", mrt::Fill::coverage},
                           {"random", mrt::Fill::random},
                           {"none", mrt::Fill::none}});
}

// Addresses; picks and the weights: 0 where there are none.
struct SelectionGroups {
  int64_t num_groups;
  Address offsets, k, group_key, picks;
  int64_t first_row;
};

struct SelectionWeights {
  Address weight, quality, bonus;
};

inline mrt::SelectionProblem selection_problem(const mrt::Features& x, const SelectionGroups& groups,
                                               const SelectionWeights& weights, const std::string& metric,
                                               double radius, const std::string& fill, int64_t seed) {
  mrt::SelectionProblem problem{};
  problem.x = x;
  problem.num_groups = groups.num_groups;
  problem.offsets = at<const int64_t>(groups.offsets);
  problem.k = at<const int64_t>(groups.k);
  problem.weight = at<const float>(weights.weight);
  problem.quality = at<const float>(weights.quality);
  problem.bonus = at<const float>(weights.bonus);
  problem.given = at<const int64_t>(groups.picks);
  problem.group_key = at<const int64_t>(groups.group_key);
  problem.metric = metric_of(metric);
  problem.radius = radius;
  problem.fill = fill_of(fill);
  problem.seed = static_cast<uint64_t>(seed);
  problem.first_row = groups.first_row;
  return problem;
}

inline mrt::SelectionResult selection_result(Address ids, Address gains, Address share, Address kept, Address value,
                                             Address bound, Address random, Address effective, Address owner) {
  mrt::SelectionResult result{};
  result.ids = at<int64_t>(ids);
  result.gains = at<int64_t>(gains);
  result.share = at<float>(share);
  result.kept = at<int64_t>(kept);
  result.value = at<int64_t>(value);
  result.bound = at<int64_t>(bound);
  result.random = at<int64_t>(random);
  result.effective = at<int64_t>(effective);
  result.owner = at<int64_t>(owner);
  return result;
}

inline void bind_selection(py::module_& m) {
  m.attr("LARGEST_GROUP") = mrt::LARGEST_GROUP;
  py::class_<SelectionGroups>(m, "SelectionGroups", py::module_local())
      .def(py::init(
               [](int64_t num_groups, Address offsets, Address k, Address group_key, Address picks, int64_t first_row) {
                 return SelectionGroups{num_groups, offsets, k, group_key, picks, first_row};
               }),
           py::kw_only(), py::arg("num_groups"), py::arg("offsets"), py::arg("k"), py::arg("group_key"),
           py::arg("picks"), py::arg("first_row"));
  py::class_<SelectionWeights>(m, "SelectionWeights", py::module_local())
      .def(py::init(
               [](Address weight, Address quality, Address bonus) { return SelectionWeights{weight, quality, bonus}; }),
           py::kw_only(), py::arg("weight"), py::arg("quality"), py::arg("bonus"));
  py::class_<mrt::SelectionProblem>(m, "SelectionProblem", py::module_local())
      .def(py::init(&selection_problem), py::kw_only(), py::arg("x"), py::arg("groups"), py::arg("weights"),
           py::arg("metric"), py::arg("radius"), py::arg("fill"), py::arg("seed"));
  py::class_<mrt::SelectionResult>(m, "SelectionResult", py::module_local())
      .def(py::init(&selection_result), py::kw_only(), py::arg("ids"), py::arg("gains"), py::arg("share"),
           py::arg("kept"), py::arg("value"), py::arg("bound"), py::arg("random"), py::arg("effective"),
           py::arg("owner"));
}

}  // namespace
