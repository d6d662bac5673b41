// Every kernel for the avx512 instruction set (F, BW, VL, DQ and VNNI), and for the same with BF16.
//
//   factors               instructions           register   products   a cycle: Xeon   Zen 4
//   int16                 vpdpwssd               16 x 2     32                  2      1
//   float32               vfmadd231ps            16         16                  2      1
//   bfloat16              vfmadd231ps, twice     16 x 2     32                  1      1/2
//   bfloat16, with BF16   vdpbf16ps              16 x 2     32                  1/2    1
//
// A Xeon with two units of 512 bits; vdpbf16ps on its model 207. int16 sums are int32, the others float32. Both bfloat16
// paths give the same bits (tile/factors.h), so choose.cpp takes the one that is quicker here.
#define MRT_AVX512
#include "isa/tables.h"

namespace mrt {

constexpr Path avx512_path = path("avx512");
constexpr Path avx512_bf16_path = path<true>("avx512_bf16");

}  // namespace mrt
