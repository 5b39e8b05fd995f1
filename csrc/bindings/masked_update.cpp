#include "masked_update/masked_update.h"

#include "bindings/convert.h"

namespace acdc {
namespace {

void check_like(const Tensor& t, const Tensor& param, const char* what) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == param.scalar_type() && t.sizes() == param.sizes(), "masked_sgd_: ", what,
                  " must have the dtype, shape and device of its parameter");
}

void masked_sgd(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> buffers, std::vector<std::optional<Tensor>> masks,
                double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize, bool first_step,
                std::optional<Tensor> lr_tensor, std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  if (found_inf && number_of(*found_inf, "masked_sgd_") != 0) return;
  const size_t n = params.size();
  STD_TORCH_CHECK(grads.size() == n && masks.size() == n && buffers.size() == (momentum == 0 ? 0 : n),
                  "masked_sgd_: grads, momentum_buffers and masks must have one entry a parameter");
  std::vector<SgdTensor> tensors(n);
  for (size_t i = 0; i < n; ++i) {
    SgdTensor& t = tensors[i];
    t.dtype = dtype_of(params[i], "masked_sgd_");
    t.param = ref(params[i]);
    check_like(grads[i], params[i], "a gradient");
    t.grad = ref(grads[i]);
    if (momentum != 0) {
      check_like(buffers[i], params[i], "a momentum buffer");
      t.momentum = ref(buffers[i]);
    } else {
      t.momentum = {};
    }
    t.bits = masks[i] ? bits_of(*masks[i], t.param.numel, "masked_sgd_") : nullptr;
  }
  if (lr_tensor) lr = number_of(*lr_tensor, "masked_sgd_");
  const double scale = grad_scale ? number_of(*grad_scale, "masked_sgd_") : 1;
  masked_sgd_cpu(tensors.data(), static_cast<int>(n), {lr, momentum, dampening, weight_decay, nesterov, maximize, first_step, scale}, pool());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, CPU, m) { m.impl("masked_sgd_", TORCH_BOX(&masked_sgd)); }

}  // namespace acdc
