#include "masked_update/masked_update_cuda.h"

#include "bindings/cuda/device.h"
#include "bindings/update_tensors.h"

namespace acdc {
namespace {

using States = std::vector<Tensors*>;

// The arguments of an update on a device. Tensors that the kernels can't walk are copied, and written back when it is over.
class DeviceUpdate {
 public:
  DeviceUpdate(const char* op, Tensors& params, Tensors& grads, const States& states, const Masks& masks, const std::vector<bool>& zeros_kept) {
    STD_TORCH_CHECK(!params.empty(), op, ": params must have at least one tensor");
    const Tensor first = params[0];
    auto make = [&] {
      return update_tensors(
          op, params, grads, {states.begin(), states.end()}, masks, zeros_kept,
          [&](const Tensor& t) { return on_device(t) && t.get_device_index() == first.get_device_index(); },
          [&](const Tensor& bits, int64_t numel) { return device_bits_of(bits, numel, first, op); });
    };
    tensors_ = make();
    for (size_t i = 0; i < params.size(); ++i) {
      if (can_update_cuda(tensors_[i])) continue;
      grads[i] = torch::stable::contiguous(grads[i]);
      copy(params[i]);
      for (Tensors* state : states) copy((*state)[i]);
    }
    if (!copies_.empty()) tensors_ = make();
  }

  const UpdateTensor* data() const { return tensors_.data(); }
  int count() const { return static_cast<int>(tensors_.size()); }
  void write_back() {
    for (auto& [original, copied] : copies_) torch::stable::copy_(original, copied);
  }

 private:
  void copy(Tensor& t) {
    copies_.emplace_back(t, torch::stable::contiguous(t));
    t = copies_.back().second;
  }

  std::vector<UpdateTensor> tensors_;
  std::vector<std::pair<Tensor, Tensor>> copies_;
};

DeviceNumber device_number(const std::optional<Tensor>& t, const Tensor& first, const char* op) {
  if (!t) return {nullptr, DType::f32};
  check_device(*t, first, op);
  STD_TORCH_CHECK(t->numel() == 1, op, ": a scalar tensor must have one element");
  return {t->const_data_ptr(), dtype_of(*t, op)};
}

// A learning rate on the CPU is read here.
DeviceNumbers device_numbers(double* lr, const std::optional<Tensor>& lr_tensor, const std::optional<Tensor>& grad_scale,
                             const std::optional<Tensor>& found_inf, const Tensor& first, const char* op) {
  DeviceNumbers numbers{{nullptr, DType::f32}, device_number(grad_scale, first, op), device_number(found_inf, first, op)};
  if (lr_tensor && on_device(*lr_tensor))
    numbers.lr = device_number(lr_tensor, first, op);
  else if (lr_tensor)
    *lr = number_of(*lr_tensor, op);
  return numbers;
}

void masked_sgd(Tensors params, Tensors grads, Tensors buffers, Masks masks, double lr, double momentum, double dampening, double weight_decay,
                bool nesterov, bool maximize, bool first_step, std::optional<Tensor> lr_tensor, std::optional<Tensor> grad_scale,
                std::optional<Tensor> found_inf, std::vector<bool> zeros_kept) {
  const char* op = "masked_sgd_";
  STD_TORCH_CHECK(momentum != 0 || buffers.empty(), op, ": momentum_buffers must be empty when momentum is 0");
  DeviceUpdate update(op, params, grads, momentum != 0 ? States{&buffers} : States{}, masks, zeros_kept);
  const DeviceNumbers numbers = device_numbers(&lr, lr_tensor, grad_scale, found_inf, params[0], op);
  const OnDevice device(params[0]);
  check_launch(masked_sgd_cuda(update.data(), update.count(), {lr, momentum, dampening, weight_decay, nesterov, maximize, first_step, 1}, numbers,
                               device.stream),
               op);
  update.write_back();
}

void masked_adamw(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors max_exp_avg_sqs, Tensors steps, Masks masks,
                  double lr, double beta1, double beta2, double eps, double weight_decay, bool amsgrad, bool maximize,
                  std::optional<Tensor> lr_tensor, std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf,
                  std::vector<bool> zeros_kept) {
  const char* op = "masked_adamw_";
  STD_TORCH_CHECK(steps.size() == params.size(), op, ": steps must have one entry a parameter");
  const States states = amsgrad ? States{&exp_avgs, &exp_avg_sqs, &max_exp_avg_sqs} : States{&exp_avgs, &exp_avg_sqs};
  DeviceUpdate update(op, params, grads, states, masks, zeros_kept);
  std::vector<float*> counts;
  for (const Tensor& step : steps) {
    check_device(step, params[0], op);
    STD_TORCH_CHECK(step.scalar_type() == ScalarType::Float && step.numel() == 1, op, ": a step must be a float32 tensor of one element");
    counts.push_back(static_cast<float*>(step.data_ptr()));
  }
  const DeviceNumbers numbers = device_numbers(&lr, lr_tensor, grad_scale, found_inf, params[0], op);
  const OnDevice device(params[0]);
  Tensor scratch = device_bytes(params[0], update.count() * kAdamWScratch);
  check_launch(masked_adamw_cuda(update.data(), counts.data(), update.count(), {lr, beta1, beta2, eps, weight_decay, amsgrad, maximize, 1}, numbers,
                                 aligned16(scratch), device.stream),
               op);
  update.write_back();
}

// Says by its being there that zeros_kept saves this device something.
bool skips_kept_zeros(const Tensor&) { return true; }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, ACDC_DEVICE_KEY, m) {
  m.impl("masked_sgd_", TORCH_BOX(&masked_sgd));
  m.impl("masked_adamw_", TORCH_BOX(&masked_adamw));
  m.impl("skips_kept_zeros", TORCH_BOX(&skips_kept_zeros));
}

}  // namespace acdc
