// The inner loops of the masked updates, one table an ISA level: contiguous rows, mask bits starting at a byte.
#pragma once
#include <cstdint>

#include "masked_update/masked_update.h"

namespace acdc {

// `bits` may be nullptr (dense); `momentum` is nullptr exactly when hyper.momentum is 0.
using SgdRow = void (*)(void* param, const void* grad, void* momentum, const uint8_t* bits, int64_t n, const SgdHyper& hyper);

struct MaskedUpdateKernels {
  SgdRow sgd[4];  // by DType
};

const MaskedUpdateKernels& masked_update_kernels();
const MaskedUpdateKernels& masked_update_kernels_generic();
const MaskedUpdateKernels& masked_update_kernels_avx2();
const MaskedUpdateKernels& masked_update_kernels_avx512();

}  // namespace acdc
