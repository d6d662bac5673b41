// One fixed mode of floating-point arithmetic for everything that the library computes.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace mrt {

// While it lives this thread rounds to nearest and flushes nothing, whatever mode its caller is in; then that is back.
// Results would depend on the caller, and on which thread did what.
class FixedFloatState {
 public:
#if defined(__x86_64__)
  FixedFloatState() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FixedFloatState() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FixedFloatState() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FixedFloatState() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
#endif
};

}  // namespace mrt
