// Every kernel for the avx2 instruction set (with FMA and F16C).
#define MRT_AVX2
#include "isa/table.h"

namespace mrt {

const Kernels avx2_kernels = table<>("avx2");

}  // namespace mrt
