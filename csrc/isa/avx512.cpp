// Every kernel for the avx512 instruction set (F, BW, VL, DQ and VNNI).
#define MRT_AVX512
#include "isa/table.h"

namespace mrt {

const Kernels avx512_kernels = table("avx512");

}  // namespace mrt
