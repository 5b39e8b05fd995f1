// The inner loops of the masked updates, one table an ISA level: contiguous rows, mask bits starting at a byte.
#pragma once
#include <cstdint>

#include "masked_update/masked_update.h"

namespace acdc {

// One row of each tensor that an update reads or writes; nullptr where there is no such state.
struct UpdateRows {
  void* param;
  const void* grad;
  void* states[kMaxStates];
};

// What the AdamW loop multiplies by: constants of one tensor at one step.
struct AdamWScalars {
  double decay;              // 1 - lr * weight_decay
  double beta1, beta2, eps;
  double minus_step_size;    // -lr / (1 - beta1^t)
  double correction2_root;   // sqrt(1 - beta2^t)
  double grad_scale;
  bool amsgrad, maximize;
};

// `bits` may be nullptr (dense).
template <class Scalars>
using UpdateLoop = void (*)(const UpdateRows& rows, const uint8_t* bits, int64_t n, const Scalars& scalars);

constexpr int kUpdateTypes = 6;

// Parameter and state type as an index: f32, f64, bf16, f16 with states of their own type, then bf16 and f16 with f32 states.
inline int update_types(DType dtype, DType state) {
  return state == dtype ? static_cast<int>(dtype) : dtype == DType::bf16 ? 4 : 5;
}

struct MaskedUpdateKernels {
  UpdateLoop<SgdHyper> sgd[kUpdateTypes];
  UpdateLoop<AdamWScalars> adamw[kUpdateTypes];
};

const MaskedUpdateKernels& masked_update_kernels();
const MaskedUpdateKernels& masked_update_kernels_generic();
const MaskedUpdateKernels& masked_update_kernels_avx2();
const MaskedUpdateKernels& masked_update_kernels_avx512();

}  // namespace acdc
