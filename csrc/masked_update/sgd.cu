#include "masked_update/update_kernels.h"

namespace acdc {
namespace {

struct Sgd {
  static constexpr int kStates = 1;

  template <class C>
  struct Numbers {
    C minus_lr, momentum, fresh, decay, grad_scale;
    bool nesterov, maximize, first_step;
    int32_t states, reads;
    DeviceNumbers device;
  };

  // The numbers that lie on the device are read.
  template <class C>
  __device__ static Numbers<C> prepare(const Numbers<C>& numbers, int) {
    Numbers<C> h = numbers;
    if (numbers.device.lr.data) h.minus_lr = static_cast<C>(-number(numbers.device.lr));
    if (numbers.device.grad_scale.data) h.grad_scale = static_cast<C>(number(numbers.device.grad_scale));
    return h;
  }

  template <class C>
  __device__ static void step(const Numbers<C>& h, C& param, C grad, C* buffer) {
    if (h.maximize) grad = -grad;
    if (h.grad_scale != C(1)) grad = grad / h.grad_scale;
    if (h.decay != C(0)) grad = fused(h.decay, param, grad);
    if (h.states) {
      buffer[0] = h.first_step ? grad : fused(h.fresh, grad, buffer[0] * h.momentum);
      grad = h.nesterov ? fused(h.momentum, buffer[0], grad) : buffer[0];
    }
    param = fused(h.minus_lr, grad, param);
  }
};

}  // namespace

bool can_update_cuda(const UpdateTensor& tensor) {
  UpdateWalk walk;
  return make_walk(tensor, &walk);
}

cudaError_t masked_sgd_cuda(const UpdateTensor* tensors, int count, const SgdHyper& h, const DeviceNumbers& device, cudaStream_t stream) {
  return launch_update<Sgd>(
      tensors, count,
      [&](auto precision) {
        using C = decltype(precision);
        const int states = h.momentum != 0;
        return Sgd::Numbers<C>{static_cast<C>(-h.lr), static_cast<C>(h.momentum), static_cast<C>(1 - h.dampening), static_cast<C>(h.weight_decay),
                               static_cast<C>(h.grad_scale), h.nesterov, h.maximize, h.first_step, states, h.first_step ? 0 : states, device};
      },
      stream);
}

}  // namespace acdc
