#include "common/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace acdc {

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "generic"; }

bool isa_available(Isa isa) {
#ifdef ACDC_X86
  if (isa == Isa::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2") && isa_available(Isa::avx2);
  if (isa == Isa::avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("popcnt");  // every processor with AVX2 and FMA has F16C, which older compilers can't ask for
#endif
  return isa == Isa::generic;
}

static Isa choose() {
  const char* wanted = std::getenv("ACDC_CPU_ISA");
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::generic}) {
    if (wanted && *wanted) {
      if (std::string(wanted) != isa_name(isa)) continue;
      if (!isa_available(isa))
        throw std::runtime_error("ACDC_CPU_ISA: must name a level that this build and processor have, got '" + std::string(wanted) + "'");
      return isa;
    }
    if (isa_available(isa)) return isa;
  }
  throw std::runtime_error("ACDC_CPU_ISA: must be avx512, avx2 or generic, got '" + std::string(wanted) + "'");
}

Isa cpu_isa() {
  static const Isa isa = choose();
  return isa;
}

static Fp16 choose_fp16() {
  const char* wanted = std::getenv("ACDC_CPU_FP16");
  if (wanted && *wanted && std::string(wanted) != "emulated")
    throw std::runtime_error("ACDC_CPU_FP16: must be emulated or not set, got '" + std::string(wanted) + "'");
  if (wanted && *wanted) return Fp16::emulated;
#ifdef ACDC_AVX512FP16
  if (cpu_isa() == Isa::avx512 && __builtin_cpu_supports("avx512fp16")) return Fp16::native;
#endif
  return Fp16::none;
}

Fp16 cpu_fp16() {
  static const Fp16 fp16 = choose_fp16();
  return fp16;
}

}  // namespace acdc
