// Chooses the instruction set once. MRTKERN_ISA caps the choice (portable, avx2, avx512), for tests; it never
// changes a selection.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "isa/kernels.h"

namespace mrt {

namespace {

const Kernels* choose() {
  const Kernels* all[4];
  available_kernels(all);
  const char* cap = std::getenv("MRTKERN_ISA");
  if (cap == nullptr || *cap == '\0') return all[0];
  bool is_allowed = false;  // from the cap's own place in the order downwards
  for (const char* name : {"avx512", "avx2", "portable"}) {
    is_allowed = is_allowed || std::strcmp(cap, name) == 0;
    for (const Kernels** k = all; is_allowed && *k != nullptr; ++k)
      if (std::strcmp((*k)->name, name) == 0) return *k;
  }
  throw std::invalid_argument(std::string("MRTKERN_ISA must be avx512, avx2 or portable, got '") + cap + "'");
}

}  // namespace

void available_kernels(const Kernels** all) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
    *all++ = &avx512_kernels;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) *all++ = &avx2_kernels;
#endif
  *all++ = &portable_kernels;
  *all = nullptr;
}

const Kernels& kernels() {
  static const Kernels* const chosen = choose();
  return *chosen;
}

}  // namespace mrt
