// What the bindings of all operations share: addresses become pointers, words become enumerators, rows become Features.
//
// What crosses the border is a struct whose members Python names, or a few numbers. Each of the two modules has its own.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

#include "tile/features.h"

namespace {

namespace py = pybind11;

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
T named(const char* what, const std::string& name, std::initializer_list<std::pair<const char*, T>> names) {
  for (const auto& [known, value] : names)
    if (name == known) return value;
  throw std::invalid_argument(std::string(what) + " is unknown here: " + name);
}

inline mrt::DType dtype_of(const std::string& name) {
  return named<mrt::DType>("dtype", name,
                           {{"float32", mrt::DType::float32},
                            {"float64", mrt::DType::float64},
                            {"bfloat16", mrt::DType::bfloat16},
                            {"float16", mrt::DType::float16}});
}

inline mrt::Metric metric_of(const std::string& name) {
  return named<mrt::Metric>("metric", name,
                            {{"cosine", mrt::Metric::cosine},
                             {"dot", mrt::Metric::dot},
                             {"shifted_cosine", mrt::Metric::shifted_cosine},
                             {"clamped_cosine", mrt::Metric::clamped_cosine},
                             {"rbf", mrt::Metric::rbf}});
}

inline mrt::Features features(Address data, const std::string& dtype, int64_t row_stride, int64_t column_stride,
                              int64_t columns) {
  mrt::Features rows{};
  rows.data = at<const void>(data);
  rows.dtype = dtype_of(dtype);
  rows.row_stride = row_stride;
  rows.column_stride = column_stride;
  rows.columns = columns;
  return rows;
}

inline void bind_features(py::module_& m) {
  py::class_<mrt::Features>(m, "Features", py::module_local())
      .def(py::init(&features), py::kw_only(), py::arg("data"), py::arg("dtype"), py::arg("row_stride"),
           py::arg("column_stride"), py::arg("columns"));
}

}  // namespace
