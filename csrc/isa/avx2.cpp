// Every kernel for the avx2 instruction set (with FMA and F16C).
//
//   factors    instructions           register   products   a cycle
//   int16      vpmaddwd, vpaddd       8 x 2      16         1.5
//   float32    vfmadd231ps            8          8          2
//   bfloat16   vfmadd231ps, twice     8 x 2      16         1
//
// On cores with three vector units of 256 bits, two of which multiply. int16 sums are int32, the others float32.
#define MRT_AVX2
#include "isa/tables.h"

namespace mrt {

constexpr Path avx2_path = path("avx2");

}  // namespace mrt
