// Every kernel for the baseline: the machine that every binary of this architecture runs on. Vectors of 16 bytes, of which
// the compiler makes what it has; how many a cycle is its matter.
//
//   factors                      operations                                         register   products
//   int16                        two products of int32, two sums                    4 x 2      8
//   float32                      a product, a sum                                   4          4
//   float32 of matrix products   fmaf                                               4          4
//   bfloat16                     fmaf, twice, with subnormal numbers made zeros     4 x 2      8
//
// int16 sums are int32, the others float32.
#define MRT_PORTABLE
#include "isa/tables.h"

namespace mrt {

constexpr Path portable_path = path("portable");

}  // namespace mrt
