// The Python face of the CUDA kernels: addresses, sizes and a stream come in, sentences go out. With bindings.cpp the only
// file that knows pybind11; it knows no header of CUDA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/cuda.h"

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of mrtkern; the public functions call them through mrtkern/ops/<op>/cuda.py.";
  m.def("device_count", &mrt::cuda_device_count, "Devices that can be used: 0 without a driver.");
  m.def("archs", &mrt::cuda_archs, "Compute capabilities with code of their own here, 80 for sm_80.");
  m.def("runtime_version", &mrt::cuda_runtime_version, "CUDA's runtime, 13000 for 13.0.");
}
