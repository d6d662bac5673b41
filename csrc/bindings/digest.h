// The seeded problems of `mrtkern verify` as Python names them.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "bindings/arguments.h"
#include "digest/problems.h"

namespace {

// The problems that `mrtkern verify` selects from; weights: addresses of weight, quality and bonus.
inline void digest_sizes(int kind, int64_t block, int64_t count, Address offsets, Address k) {
  mrt::digest::make_sizes(static_cast<mrt::digest::Kind>(kind), block, count, at<int64_t>(offsets), at<int64_t>(k));
}

inline void digest_rows(int kind, int64_t block, int64_t count, Address offsets, Address x,
                        const std::array<Address, 3>& weights) {
  const auto [weight, quality, bonus] = weights;
  mrt::digest::make_rows(static_cast<mrt::digest::Kind>(kind), block, count, at<const int64_t>(offsets), at<float>(x),
                         at<float>(weight), at<float>(quality), at<float>(bonus));
}

inline void bind_digest(py::module_& m) {
  m.def("digest_sizes", &digest_sizes, py::arg("kind"), py::arg("block"), py::arg("count"), py::arg("offsets"),
        py::arg("k"));
  m.def("digest_rows", &digest_rows, py::arg("kind"), py::arg("block"), py::arg("count"), py::arg("offsets"),
        py::arg("x"), py::arg("weights"));
}

}  // namespace
