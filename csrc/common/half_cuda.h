// 16-bit floats in kernels: by the card's instructions, and by integer arithmetic where a card is emulated.
#pragma once
#include "common/cuda.h"

#ifdef ACDC_CUDA_EMULATED
#include "common/half.h"

namespace acdc {
inline void narrow(float f, bf16* to) { *to = narrow_bf16(f); }
inline void narrow(float f, f16* to) { *to = narrow_f16(f); }
}  // namespace acdc

#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace acdc {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

__device__ inline float widen(bf16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
__device__ inline float widen(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

// Rounded to nearest even.
__device__ inline void narrow(float f, bf16* to) { to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(f)); }
__device__ inline void narrow(float f, f16* to) { to->bits = __half_as_ushort(__float2half_rn(f)); }

}  // namespace acdc
#endif
