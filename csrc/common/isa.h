// Which instruction set the CPU kernels run at.
#pragma once

namespace acdc {

enum class Isa : int { generic, avx2, avx512 };

// The best level that build and processor have, or the one that ACDC_CPU_ISA names. Asking for a level that is not there throws
// std::runtime_error: an explicit request never falls back.
Isa cpu_isa();
const char* isa_name(Isa isa);
// Whether this build and this processor can run `isa`.
bool isa_available(Isa isa);

// Whether products in float16 can run: native with AVX512-FP16 at the avx512 level; emulated if ACDC_CPU_FP16=emulated asks for it (slow,
// for tests).
enum class Fp16 : int { none, emulated, native };
Fp16 cpu_fp16();

}  // namespace acdc

// Defines `const Table& name()`, the kernel table of the chosen level, from name##_generic() and its siblings.
#ifdef ACDC_X86
#define ACDC_SELECT_ISA(Table, name)                                                               \
  const Table& name() {                                                                            \
    static const Table& table = cpu_isa() == Isa::avx512 ? name##_avx512()                         \
                                : cpu_isa() == Isa::avx2 ? name##_avx2()                           \
                                                         : name##_generic();                       \
    return table;                                                                                  \
  }
#else
#define ACDC_SELECT_ISA(Table, name) \
  const Table& name() { return name##_generic(); }
#endif
