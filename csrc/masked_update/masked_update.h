// masked_sgd: one step of SGD with momentum under mask bits, many tensors in one pass.
//
// For each element, with g = gradient / grad_scale, negated if maximize:
//   g  = g + weight_decay * p                      (if weight_decay != 0)
//   b  = first_step ? g : momentum * b + (1 - dampening) * g     (if momentum != 0)
//   g  = nesterov ? g + momentum * b : b           (if momentum != 0)
//   p  = p - lr * g
// and p = b = +0.0 where the mask bit is 0, whatever p, b and the gradient hold (NaN included).
//
// Every sum is one fused multiply-add where the ISA level has it, and momentum * b is rounded before it: torch's order of roundings,
// so float32 and float64 give torch.optim.SGD's bits. 16-bit types are computed in float and rounded once, when stored. Results do
// not depend on the thread count.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"
#include "common/strided.h"

namespace acdc {

struct SgdHyper {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize, first_step;
  double grad_scale;  // what the gradients were multiplied by; 1: nothing
};

struct SgdTensor {
  TensorRef param, grad, momentum;  // momentum.data == nullptr when momentum is 0
  const uint8_t* bits;              // nullptr: dense
  DType dtype;
};

void masked_sgd_cpu(const SgdTensor* tensors, int count, const SgdHyper& hyper, const Pool& pool);

}  // namespace acdc
