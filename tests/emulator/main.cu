// Runs all tests of the kernels' language. The argument, if there is one, is the emulator's order of blocks and threads.
#include "check.h"

#if !defined(__CUDACC__)
static void choose_order(const char* order) {
  mrt::emulator::set_order(order);
}
#else
static void choose_order(const char*) {}
#endif

int main(int count, char** arguments) {
  if (count > 1) choose_order(arguments[1]);
  try {
    test_warps();
    test_blocks();
    test_numbers();
    test_launches();
  } catch (const mrt::CudaError& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
