// Every kernel for the avx512 instruction set (F, BW, VL, DQ and VNNI), and for the same with BF16.
#define MRT_AVX512
#include "isa/table.h"

namespace mrt {

const Kernels avx512_kernels = table<>("avx512");
const Kernels avx512_bf16_kernels = table<true>("avx512_bf16");

}  // namespace mrt
