// _C: what was built and what this processor has; free of torch, so that it loads with any.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "common/isa.h"

namespace {

std::vector<std::string> isa_levels() {
  std::vector<std::string> names;
  for (acdc::Isa isa : {acdc::Isa::generic, acdc::Isa::avx2, acdc::Isa::avx512})
    if (acdc::isa_available(isa)) names.emplace_back(acdc::isa_name(isa));
  return names;
}

std::map<std::string, std::string> build_info() {
  return {{"version", ACDC_VERSION},       {"compiler", ACDC_COMPILER}, {"build_type", ACDC_BUILD_TYPE},
          {"torch_target", ACDC_TORCH_TARGET}, {"cuda", ACDC_BUILD_CUDA},   {"cuda_architectures", ACDC_BUILD_CUDA_FOR},
          {"no_cuda", ACDC_NO_CUDA}};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and CPU features of acdc_kernels.";
  m.def("build_info", &build_info, "What was built: version, compiler, build type, oldest torch, CUDA.");
  m.def("cpu_isa", [] { return std::string(acdc::isa_name(acdc::cpu_isa())); }, "The ISA level that CPU kernels run at.");
  m.def("cpu_fp16", [] {
    const acdc::Fp16 fp16 = acdc::cpu_fp16();
    return std::string(fp16 == acdc::Fp16::native ? "native" : fp16 == acdc::Fp16::emulated ? "emulated" : "none");
  }, "Whether float16 products can run: native, emulated or none.");
  m.def("isa_levels", &isa_levels, "The ISA levels that this build and processor can run.");
}
