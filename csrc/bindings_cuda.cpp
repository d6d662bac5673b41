// The Python face of the CUDA kernels: addresses, sizes and a stream come in, sentences go out. With bindings.cpp the only
// file that knows pybind11; it knows no header of CUDA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "common/cuda.h"
#include "facility_location/select_on_device.h"

namespace py = pybind11;

namespace {

// `largest`: rows of the largest group. `scratch`: addresses of slots, bad_row and workspace. `stream`: device, address.
void facility_location_grouped(const SelectionArguments& arguments, const std::array<Address, 9>& out, int64_t largest,
                               const std::array<Address, 3>& scratch, const std::pair<int, Address>& stream) {
  const mrt::SelectionProblem problem = selection_problem(arguments);
  const mrt::SelectionResult result = selection_result(out);
  const mrt::DeviceScratch memory{at<const int64_t>(scratch[0]), at<unsigned long long>(scratch[1]),
                                  at<unsigned char>(scratch[2])};
  const py::gil_scoped_release release;
  mrt::select_groups_on_device(problem, result, memory, largest, {stream.first, stream.second});
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of mrtkern; the public functions call them through mrtkern/ops/<op>/cuda.py.";
  m.def("device_count", &mrt::cuda_device_count, "Devices that can be used: 0 without a driver.");
  m.def("archs", &mrt::cuda_archs, "Compute capabilities with code of their own here, 80 for sm_80.");
  m.def("runtime_version", &mrt::cuda_runtime_version, "CUDA's runtime, 13000 for 13.0.");
  m.attr("LARGEST_GROUP") = mrt::LARGEST_GROUP;
  m.def("facility_location_workspace", &mrt::select_groups_workspace);
  m.def("facility_location_grouped", &facility_location_grouped);
}
