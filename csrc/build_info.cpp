// The Python module rlhf_core._C: importing it registers the ops, and it says how it was built.

#include <pybind11/pybind11.h>
#include <torch/version.h>

#include "cpu/isa.h"
#include "cpu/products.h"

#define RLHF_QUOTE(text) #text
#define RLHF_STRING(macro) RLHF_QUOTE(macro)
#define RLHF_NAME(isa) #isa,

namespace {

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

pybind11::dict build_info() {
  pybind11::list isas;
  for (const char* isa : {RLHF_ISAS(RLHF_NAME)}) isas.append(isa);
  pybind11::dict info;
  info["isas"] = isas;
  info["isa"] = rlhf::cpu::name(rlhf::cpu::isa());
  info["bf16_products"] = rlhf::cpu::has_bf16_products();
  info["compiler"] = compiler();
  info["torch"] = TORCH_VERSION;
  info["pybind11"] = RLHF_STRING(PYBIND11_VERSION_MAJOR) "." RLHF_STRING(PYBIND11_VERSION_MINOR);
#ifdef RLHF_CUDA
  info["cuda"] = RLHF_STRING(RLHF_CUDA);
  info["arch_list"] = RLHF_ARCH_LIST;
#else
  info["cuda"] = "none";
  info["arch_list"] = "";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "C++ ops of rlhf_core.kernels (registered with torch on import).";
  module.def(
      "build_info", &build_info,
      "Instruction sets compiled in (isas) and in use (isa), compiler, and the versions built against.");
}
