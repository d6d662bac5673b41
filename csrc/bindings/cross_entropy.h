// cross_entropy of rows of logits as Python names it.
#pragma once

#include "bindings/running.h"
#include "cross_entropy/cross_entropy.h"

namespace {

// Addresses of logits and gradient (0: not wanted).
struct Logits {
  Address logits, gradient;
  mrt::DType dtype;
  int64_t T, V, logits_stride, gradient_stride;
};

// Addresses; target_offsets, weight, entropy_weight, given_lse: 0 where there are none.
struct Targets {
  Address targets, target_offsets;
  int64_t ignore_index;
  Address weight;
  float uniform_weight;
  Address entropy_weight, given_lse;
};

inline mrt::RowResults row_results(Address nll, Address weighted, Address entropy, Address argmax, Address lse) {
  mrt::RowResults results{};
  results.nll = at<float>(nll);
  results.weighted = at<float>(weighted);
  results.entropy = at<float>(entropy);
  results.argmax = at<int64_t>(argmax);
  results.lse = at<double>(lse);
  return results;
}

inline double cross_entropy_rows(const Logits& logits, const Targets& targets, const mrt::LossOptions& options,
                                 const mrt::RowResults& results, int threads) {
  mrt::LogitRows rows{};
  rows.logits = at<const void>(logits.logits);
  rows.gradient = at<void>(logits.gradient);
  rows.dtype = logits.dtype;
  rows.T = logits.T;
  rows.V = logits.V;
  rows.logits_stride = logits.logits_stride;
  rows.gradient_stride = logits.gradient_stride;
  rows.targets = at<const int64_t>(targets.targets);
  rows.target_offsets = at<const int64_t>(targets.target_offsets);
  rows.ignore_index = targets.ignore_index;
  rows.weight = at<const float>(targets.weight);
  rows.uniform_weight = targets.uniform_weight;
  rows.entropy_weight = at<const float>(targets.entropy_weight);
  const auto* const lse = at<const double>(targets.given_lse);
  return released([&] { return mrt::cross_entropy_rows(rows, options, results, lse, threads); });
}

inline void bind_cross_entropy(py::module_& m) {
  py::class_<Logits>(m, "Logits", py::module_local())
      .def(py::init([](Address logits, Address gradient, const std::string& dtype, int64_t T, int64_t V,
                       int64_t logits_stride, int64_t gradient_stride) {
             return Logits{logits, gradient, dtype_of(dtype), T, V, logits_stride, gradient_stride};
           }),
           py::kw_only(), py::arg("logits"), py::arg("gradient"), py::arg("dtype"), py::arg("T"), py::arg("V"),
           py::arg("logits_stride"), py::arg("gradient_stride"));
  py::class_<Targets>(m, "Targets", py::module_local())
      .def(py::init([](Address targets, Address target_offsets, int64_t ignore_index, Address weight,
                       double uniform_weight, Address entropy_weight, Address given_lse) {
             return Targets{targets,        target_offsets, ignore_index, weight, static_cast<float>(uniform_weight),
                            entropy_weight, given_lse};
           }),
           py::kw_only(), py::arg("targets"), py::arg("target_offsets") = 0, py::arg("ignore_index"),
           py::arg("weight") = 0, py::arg("uniform_weight") = 0.0, py::arg("entropy_weight") = 0,
           py::arg("given_lse") = 0);
  py::class_<mrt::LossOptions>(m, "LossOptions", py::module_local())
      .def(py::init([](double label_smoothing, double z_loss, double softcap, double scale, int64_t classes) {
             return mrt::LossOptions{label_smoothing, z_loss, softcap, scale, classes};
           }),
           py::kw_only(), py::arg("label_smoothing") = 0.0, py::arg("z_loss") = 0.0, py::arg("softcap") = 0.0,
           py::arg("scale") = 1.0, py::arg("classes") = 0);
  py::class_<mrt::RowResults>(m, "RowResults", py::module_local())
      .def(py::init(&row_results), py::kw_only(), py::arg("nll") = 0, py::arg("weighted") = 0, py::arg("entropy") = 0,
           py::arg("argmax") = 0, py::arg("lse") = 0);
  m.def("cross_entropy_rows", &cross_entropy_rows, py::arg("logits"), py::arg("targets"), py::arg("options"),
        py::arg("results"), py::arg("threads"));
}

}  // namespace
