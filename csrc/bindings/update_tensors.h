// The tensor arguments of the masked updates, as kernels take them.
#pragma once
#include "bindings/convert.h"
#include "masked_update/masked_update.h"

namespace acdc {

using Tensors = std::vector<Tensor>;
using Masks = std::vector<std::optional<Tensor>>;

// Memory safety only: the public functions validate with messages that name the argument. here(tensor) says whether a tensor lies where
// the kernels can reach it, bits_of(mask, numel) checks a mask.
template <class Here, class BitsOf>
std::vector<UpdateTensor> update_tensors(const char* op, const Tensors& params, const Tensors& grads, const std::vector<const Tensors*>& states,
                                         const Masks& masks, const std::vector<bool>& zeros_kept, const Here& here, const BitsOf& bits_of) {
  const size_t n = params.size();
  STD_TORCH_CHECK(grads.size() == n && masks.size() == n, op, ": grads and masks must have one entry a parameter");
  STD_TORCH_CHECK(zeros_kept.empty() || zeros_kept.size() == n, op, ": zeros_kept must have one entry a parameter, or none");
  std::vector<UpdateTensor> tensors(n);
  for (size_t i = 0; i < n; ++i) {
    UpdateTensor& t = tensors[i];
    t.dtype = t.state_dtype = dtype_of(params[i], op);
    t.param = ref(params[i]);
    auto check = [&](const Tensor& other, DType dtype) {
      STD_TORCH_CHECK(here(other) && dtype_of(other, op) == dtype && other.sizes() == params[i].sizes(), op,
                      ": gradient and state must have the dtype, shape and device of their parameter");
    };
    check(params[i], t.dtype);
    check(grads[i], t.dtype);
    t.grad = ref(grads[i]);
    int k = 0;
    for (const Tensors* state : states) {
      STD_TORCH_CHECK(state->size() == n, op, ": a state must have one entry a parameter");
      const Tensor& s = (*state)[i];
      if (k == 0 && element_bytes(t.dtype) == 2 && s.scalar_type() == ScalarType::Float) t.state_dtype = DType::f32;
      check(s, t.state_dtype);
      t.states[k++] = ref(s);
    }
    t.bits = masks[i] ? bits_of(*masks[i], t.param.numel) : nullptr;
    t.zeros_kept = !zeros_kept.empty() && zeros_kept[i];
  }
  return tensors;
}

}  // namespace acdc
