// masked_sgd, masked_adamw: one step of an optimizer under mask bits, many tensors in one pass.
//
// Whatever parameter, state and gradient hold (NaN included), parameter and state are +0.0 where the mask bit is 0. 16-bit types are
// computed in float and rounded once, when stored; their state may be float. Results do not depend on the thread count.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"
#include "common/strided.h"

namespace acdc {

constexpr int kMaxStates = 3;

struct UpdateTensor {
  TensorRef param, grad, states[kMaxStates];  // data == nullptr: the update has no such state
  const uint8_t* bits;                        // nullptr: dense
  DType dtype, state_dtype;                   // the states': dtype, or f32 where dtype has 16 bits
  bool zeros_kept = false;                    // param and states are +0.0 where the mask bit is 0: a GPU doesn't write them again
};

// For each element, with g = gradient / grad_scale, negated if maximize, and b = states[0]:
//   g  = g + weight_decay * p                      (if weight_decay != 0)
//   b  = first_step ? g : momentum * b + (1 - dampening) * g     (if momentum != 0)
//   g  = nesterov ? g + momentum * b : b           (if momentum != 0)
//   p  = p - lr * g
// Every sum is one fused multiply-add where the ISA level has it, and momentum * b is rounded before it: torch's order of roundings,
// so float32 and float64 give torch.optim.SGD's bits.
struct SgdHyper {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize, first_step;
  double grad_scale = 1;
};

// states[0] is there exactly if momentum is not 0.
void masked_sgd_cpu(const UpdateTensor* tensors, int count, const SgdHyper& hyper, const Pool& pool);

// For each element, with g as above, m, v, x = states[0], [1], [2] and t the tensor's step after it was increased by one:
//   p  = p * (1 - lr * weight_decay)
//   m  = m + (1 - beta1) * (g - m)                 (for beta1 <= 0.5: g + -beta1 * (g - m))
//   v  = v * beta2 + (1 - beta2) * g * g
//   x  = max(x, v), NaN if either is               (amsgrad; else x is v)
//   p  = p + -lr / (1 - beta1^t) * m / (sqrt(x) / sqrt(1 - beta2^t) + eps)
// Scalars are computed in double, products from left to right. The sums of m and v are one fused multiply-add where the ISA level has
// it: the order of roundings of torch's CPU loops. m and v are torch.optim.AdamW's bits, and p would be but for the square root:
// torch's comes from a vector library, here it is correctly rounded.
struct AdamWHyper {
  double lr, beta1, beta2, eps, weight_decay;
  bool amsgrad, maximize;
  double grad_scale = 1;
};

// steps[t] belongs to tensors[t], and is increased by one. states[2] is there exactly if amsgrad.
void masked_adamw_cpu(const UpdateTensor* tensors, float* const* steps, int count, const AdamWHyper& hyper, const Pool& pool);

}  // namespace acdc
