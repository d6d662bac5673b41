// The Python face of the CUDA kernels: addresses, sizes and a stream come in under their names, sentences go out. It knows no
// header of CUDA.
#include <pybind11/stl.h>

#include "bindings/facility_location.h"
#include "common/cuda.h"
#include "facility_location/select_on_device.h"

namespace {

mrt::DeviceScratch device_scratch(Address slots, Address bad_row, Address workspace) {
  mrt::DeviceScratch scratch{};
  scratch.slots = at<const int64_t>(slots);
  scratch.bad_row = at<unsigned long long>(bad_row);
  scratch.workspace = at<unsigned char>(workspace);
  return scratch;
}

// `largest`: rows of the largest group.
void facility_location_grouped(const mrt::SelectionProblem& problem, const mrt::SelectionResult& result,
                               const mrt::DeviceScratch& scratch, int64_t largest, const mrt::CudaStream& stream) {
  const py::gil_scoped_release release;
  mrt::select_groups_on_device(problem, result, scratch, largest, stream);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of mrtkern; the public functions call them through mrtkern/ops/<op>/cuda.py.";
  m.def("device_count", &mrt::cuda_device_count, "Devices that can be used: 0 without a driver.");
  m.def("archs", &mrt::cuda_archs, "Compute capabilities with code of their own here, 80 for sm_80.");
  m.def("runtime_version", &mrt::cuda_runtime_version, "CUDA's runtime, 13000 for 13.0.");
  bind_features(m);
  bind_selection(m);
  py::class_<mrt::CudaStream>(m, "CudaStream", py::module_local())
      .def(py::init([](int device, Address address) { return mrt::CudaStream{device, address}; }), py::kw_only(),
           py::arg("device"), py::arg("address"));
  py::class_<mrt::DeviceScratch>(m, "DeviceScratch", py::module_local())
      .def(py::init(&device_scratch), py::kw_only(), py::arg("slots"), py::arg("bad_row"), py::arg("workspace"));
  m.def("facility_location_workspace", &mrt::select_groups_workspace, py::arg("num_groups"), py::arg("largest"),
        py::arg("D"), py::arg("device"));
  m.def("facility_location_grouped", &facility_location_grouped, py::arg("problem"), py::arg("result"),
        py::arg("scratch"), py::arg("largest"), py::arg("stream"));
}
