// The kernels of cross_entropy for one instruction set.
#pragma once

#include "cross_entropy/cross_entropy_kernels.h"
#include "cross_entropy/rows.h"

namespace mrt {
namespace {

constexpr CrossEntropyKernels cross_entropy_table() {
  CrossEntropyKernels table{};
  table.row_statistics = row_statistics;
  table.row_gradient = row_gradient;
  table.row_scale = row_scale;
  table.row_argmax = row_argmax;
  table.row_read = row_read;
  table.row_write = row_write;
  return table;
}

}  // namespace
}  // namespace mrt
