// The products of the tile engine as Python names them, and the peak that they are measured by.
#pragma once

#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "bindings/running.h"
#include "common/parallel.h"
#include "tile/blocks.h"
#include "tile/matmul_problem.h"
#include "tile/tile_kernels.h"

namespace {

// Address, type, strides of row and column.
using Operand = std::tuple<Address, std::string, int64_t, int64_t>;

inline mrt::Features operand(const Operand& x, int64_t K) {
  const auto& [address, dtype, row_stride, column_stride] = x;
  return features(address, dtype, row_stride, column_stride, K);
}

// out [M, N] = a [M, K] b [N, K]^T + bias, or += where it adds; out is (address, stride), bias 0 where there is none.
inline void matmul(const Operand& a, const Operand& b, const std::array<int64_t, 3>& sizes,
                   const std::pair<Address, int64_t>& out, Address bias, bool adds, bool is_half, Address workspace,
                   int threads) {
  const auto [M, N, K] = sizes;
  mrt::MatmulProblem problem{};
  problem.a = operand(a, K);
  problem.b = operand(b, K);
  problem.M = M;
  problem.N = N;
  problem.K = K;
  problem.is_half = is_half;
  problem.out = at<float>(out.first);
  problem.stride = out.second;
  problem.bias = at<const float>(bias);
  problem.adds = adds;
  released([&] {
    mrt::matmul(problem, at<void>(workspace), threads);
    return 0;
  });
}

// Does that many operations in registers, shared among the threads: the least time that a product can take.
inline void multiply_only(const std::string& dtype, int64_t flops, int threads) {
  const auto multiply = named<int64_t (*)(int64_t)>("dtype", dtype,
                                                    {{"int16", mrt::tile_kernels().multiply_int16},
                                                     {"float32", mrt::tile_kernels().multiply_float32},
                                                     {"bfloat16", mrt::tile_kernels().multiply_bfloat16}});
  constexpr int64_t PARTS = 64;
  released([&] {
    mrt::parallel_for(PARTS, 1, threads, [&](mrt::Worker&, int64_t) { multiply(flops / PARTS); });
    return 0;
  });
}

inline void bind_tile(py::module_& m) {
  m.attr("MATMUL_WORKSPACE") = mrt::MATMUL_WORKSPACE;
  m.attr("LARGEST_BLOCK") = mrt::LARGEST_BLOCK * mrt::PANEL;  // rows
  m.def("matmul", &matmul, py::arg("a"), py::arg("b"), py::arg("sizes"), py::arg("out"), py::arg("bias"),
        py::arg("adds"), py::arg("is_half"), py::arg("workspace"), py::arg("threads"));
  m.def("multiply_only", &multiply_only, "The peak of this machine: operations with nothing to load.", py::arg("dtype"),
        py::arg("flops"), py::arg("threads"));
}

}  // namespace
