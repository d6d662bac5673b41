// Every kernel for the baseline: the machine that every binary of this architecture runs on.
#define MRT_PORTABLE
#include "isa/table.h"

namespace mrt {

const Kernels portable_kernels = table<>("portable");

}  // namespace mrt
