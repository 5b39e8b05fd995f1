// The inner loops of the rooflines, one table an ISA level.
#pragma once
#include <cstdint>

namespace acdc {

struct RooflineKernels {
  uint8_t (*largest_byte)(const uint8_t* p, int64_t n);
  void (*update)(float* p, const float* g, float* b, const uint8_t* bits, int64_t n);  // reads no bits
  void (*masked_update)(float* p, const float* g, float* b, const uint8_t* bits, int64_t n);
};

const RooflineKernels& roofline_kernels();
const RooflineKernels& roofline_kernels_generic();
const RooflineKernels& roofline_kernels_avx2();
const RooflineKernels& roofline_kernels_avx512();

}  // namespace acdc
