// What the two bindings share: addresses become pointers, words become enumerators. Knows neither pybind11 nor CUDA.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "facility_location/facility_location.h"

namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
T named(const char* what, const std::string& name, const std::map<std::string, T>& names) {
  const auto found = names.find(name);
  if (found == names.end()) throw std::invalid_argument(std::string(what) + " is unknown here: " + name);
  return found->second;
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

inline mrt::Fill fill_of(const std::string& name) {
  return named<mrt::Fill>("fill", name,
                          {{"index", mrt::Fill::index},
                           {"coverage", mrt::Fill::coverage},
                           {"random", mrt::Fill::random},
                           {"none", mrt::Fill::none}});
}

inline mrt::Features features(Address x, const std::string& dtype, int64_t row_stride, int64_t column_stride,
                              int64_t D) {
  return {at<const void>(x), dtype_of(dtype), row_stride, column_stride, D};
}

// Of per-group selection: x (address, type, strides of row and column, D); addresses of offsets, k, weight, quality,
// bonus, given and group_key (0: not given); B; metric, radius, fill, seed, first_row.
using SelectionArguments =
    std::tuple<std::tuple<Address, std::string, int64_t, int64_t, int64_t>, std::array<Address, 7>, int64_t,
               std::string, double, std::string, int64_t, int64_t>;

inline mrt::SelectionProblem selection_problem(const SelectionArguments& arguments) {
  const auto& [x, in, num_groups, metric, radius, fill, seed, first_row] = arguments;
  const auto& [address, dtype, row_stride, column_stride, D] = x;
  return {features(address, dtype, row_stride, column_stride, D),
          num_groups,
          at<const int64_t>(in[0]),
          at<const int64_t>(in[1]),
          at<const float>(in[2]),
          at<const float>(in[3]),
          at<const float>(in[4]),
          at<const int64_t>(in[5]),
          at<const int64_t>(in[6]),
          metric_of(metric),
          radius,
          fill_of(fill),
          static_cast<uint64_t>(seed),
          first_row};
}

// In the order of the struct: ids, gains, share, kept, value, bound, random, effective, owner.
inline mrt::SelectionResult selection_result(const std::array<Address, 9>& out) {
  return {at<int64_t>(out[0]), at<int64_t>(out[1]), at<float>(out[2]),   at<int64_t>(out[3]), at<int64_t>(out[4]),
          at<int64_t>(out[5]), at<int64_t>(out[6]), at<int64_t>(out[7]), at<int64_t>(out[8])};
}

}  // namespace
