#include "masked_update/masked_update.h"

#include "bindings/convert.h"

namespace acdc {
namespace {

using Tensors = std::vector<Tensor>;
using Masks = std::vector<std::optional<Tensor>>;

// Memory safety only: the public functions validate with messages that name the argument.
std::vector<UpdateTensor> update_tensors(const char* op, const Tensors& params, const Tensors& grads, std::initializer_list<const Tensors*> states,
                                         const Masks& masks) {
  const size_t n = params.size();
  STD_TORCH_CHECK(grads.size() == n && masks.size() == n, op, ": grads and masks must have one entry a parameter");
  std::vector<UpdateTensor> tensors(n);
  for (size_t i = 0; i < n; ++i) {
    UpdateTensor& t = tensors[i];
    t.dtype = t.state_dtype = dtype_of(params[i], op);
    t.param = ref(params[i]);
    auto check = [&](const Tensor& other, DType dtype) {
      STD_TORCH_CHECK(other.is_cpu() && dtype_of(other, op) == dtype && other.sizes() == params[i].sizes(), op,
                      ": gradient and state must have the dtype, shape and device of their parameter");
    };
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
    t.bits = masks[i] ? bits_of(*masks[i], t.param.numel, op) : nullptr;
  }
  return tensors;
}

void masked_sgd(Tensors params, Tensors grads, Tensors buffers, Masks masks, double lr, double momentum, double dampening, double weight_decay,
                bool nesterov, bool maximize, bool first_step, std::optional<Tensor> lr_tensor, std::optional<Tensor> grad_scale,
                std::optional<Tensor> found_inf) {
  const char* op = "masked_sgd_";
  STD_TORCH_CHECK(momentum != 0 || buffers.empty(), op, ": momentum_buffers must be empty when momentum is 0");
  const auto tensors = momentum != 0 ? update_tensors(op, params, grads, {&buffers}, masks) : update_tensors(op, params, grads, {}, masks);
  if (found_inf && number_of(*found_inf, op) != 0) return;
  if (lr_tensor) lr = number_of(*lr_tensor, op);
  const double scale = grad_scale ? number_of(*grad_scale, op) : 1;
  masked_sgd_cpu(tensors.data(), static_cast<int>(tensors.size()),
                 {lr, momentum, dampening, weight_decay, nesterov, maximize, first_step, scale}, pool());
}

void masked_adamw(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors max_exp_avg_sqs, Tensors steps, Masks masks,
                  double lr, double beta1, double beta2, double eps, double weight_decay, bool amsgrad, bool maximize,
                  std::optional<Tensor> lr_tensor, std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  const char* op = "masked_adamw_";
  const auto tensors = amsgrad ? update_tensors(op, params, grads, {&exp_avgs, &exp_avg_sqs, &max_exp_avg_sqs}, masks)
                               : update_tensors(op, params, grads, {&exp_avgs, &exp_avg_sqs}, masks);
  STD_TORCH_CHECK(steps.size() == params.size(), op, ": steps must have one entry a parameter");
  std::vector<float*> counts;
  for (const Tensor& step : steps) {
    STD_TORCH_CHECK(step.is_cpu() && step.scalar_type() == ScalarType::Float && step.numel() == 1, op,
                    ": a step must be a float32 tensor of one element");
    counts.push_back(static_cast<float*>(step.data_ptr()));
  }
  if (found_inf && number_of(*found_inf, op) != 0) return;
  if (lr_tensor) lr = number_of(*lr_tensor, op);
  const double scale = grad_scale ? number_of(*grad_scale, op) : 1;
  masked_adamw_cpu(tensors.data(), counts.data(), static_cast<int>(tensors.size()),
                   {lr, beta1, beta2, eps, weight_decay, amsgrad, maximize, scale}, pool());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, CPU, m) {
  m.impl("masked_sgd_", TORCH_BOX(&masked_sgd));
  m.impl("masked_adamw_", TORCH_BOX(&masked_adamw));
}

}  // namespace acdc
