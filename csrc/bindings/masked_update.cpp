#include "bindings/update_tensors.h"

namespace acdc {
namespace {

std::vector<UpdateTensor> tensors_of(const char* op, const Tensors& params, const Tensors& grads, const std::vector<const Tensors*>& states,
                                     const Masks& masks, const std::vector<bool>& zeros_kept) {
  return update_tensors(
      op, params, grads, states, masks, zeros_kept, [](const Tensor& t) { return t.is_cpu(); },
      [&](const Tensor& bits, int64_t numel) { return bits_of(bits, numel, op); });
}

void masked_sgd(Tensors params, Tensors grads, Tensors buffers, Masks masks, double lr, double momentum, double dampening, double weight_decay,
                bool nesterov, bool maximize, bool first_step, std::optional<Tensor> lr_tensor, std::optional<Tensor> grad_scale,
                std::optional<Tensor> found_inf, std::vector<bool> zeros_kept) {
  const char* op = "masked_sgd_";
  STD_TORCH_CHECK(momentum != 0 || buffers.empty(), op, ": momentum_buffers must be empty when momentum is 0");
  const auto tensors = momentum != 0 ? tensors_of(op, params, grads, {&buffers}, masks, zeros_kept)
                                     : tensors_of(op, params, grads, {}, masks, zeros_kept);
  if (found_inf && number_of(*found_inf, op) != 0) return;
  if (lr_tensor) lr = number_of(*lr_tensor, op);
  const double scale = grad_scale ? number_of(*grad_scale, op) : 1;
  masked_sgd_cpu(tensors.data(), static_cast<int>(tensors.size()),
                 {lr, momentum, dampening, weight_decay, nesterov, maximize, first_step, scale}, pool());
}

void masked_adamw(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors max_exp_avg_sqs, Tensors steps, Masks masks,
                  double lr, double beta1, double beta2, double eps, double weight_decay, bool amsgrad, bool maximize,
                  std::optional<Tensor> lr_tensor, std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf,
                  std::vector<bool> zeros_kept) {
  const char* op = "masked_adamw_";
  const auto tensors = amsgrad ? tensors_of(op, params, grads, {&exp_avgs, &exp_avg_sqs, &max_exp_avg_sqs}, masks, zeros_kept)
                               : tensors_of(op, params, grads, {&exp_avgs, &exp_avg_sqs}, masks, zeros_kept);
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
