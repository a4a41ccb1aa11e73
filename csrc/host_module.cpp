// lgfast._C seen from Python: what was built. No torch headers here.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = LGFAST_TORCH_VERSION;  // headers compiled against
  info["torch_minimum"] = "2.11";        // stable ABI version targeted
  info["compiler"] = __VERSION__;
  info["cuda_compiler"] = LGFAST_CUDA_COMPILER;  // "" : CPU kernels only
  info["cuda_archs"] = LGFAST_CUDA_ARCHS;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native host module of lgfast: build information and kernel plans.";
  m.def("build_info", &build_info, "Compilers, torch headers and GPU architectures this library was built with.");
}
