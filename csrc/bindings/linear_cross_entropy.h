// What is done to gradients of a head beside products, as Python names it.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "bindings/running.h"
#include "linear_cross_entropy/gradients.h"

namespace {

// total [V] += the sums of the columns of z [C, V], which is (address, stride).
inline void add_column_sums(const std::pair<Address, int64_t>& z, const std::array<int64_t, 2>& sizes, Address total,
                            int threads) {
  released([&] {
    mrt::add_column_sums(at<const float>(z.first), z.second, sizes[0], sizes[1], at<float>(total), threads);
    return 0;
  });
}

inline void scale(Address in, Address out, const std::string& dtype, int64_t count, Address factor, int threads) {
  const mrt::DType type = dtype_of(dtype);
  released([&] {
    mrt::scale(at<const float>(in), at<void>(out), type, count, factor == 0 ? 1.0f : *at<const float>(factor), threads);
    return 0;
  });
}

inline void bind_linear_cross_entropy(py::module_& m) {
  m.def("add_column_sums", &add_column_sums, py::arg("z"), py::arg("sizes"), py::arg("total"), py::arg("threads"));
  m.def("scale", &scale, py::arg("gradient"), py::arg("out"), py::arg("dtype"), py::arg("count"), py::arg("factor"),
        py::arg("threads"));
}

}  // namespace
