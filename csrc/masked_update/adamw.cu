#include "masked_update/update_kernels.h"

namespace acdc {
namespace {

// A tensor's constants at one step, in device memory.
struct TensorNumbers {
  double decay;             // 1 - lr * weight_decay
  double minus_step_size;   // -lr / (1 - beta1^t)
  double correction2_root;  // sqrt(1 - beta2^t)
};
static_assert(sizeof(TensorNumbers) == kAdamWScratch, "as the header says");

struct AdamW {
  static constexpr int kStates = 3;

  template <class C>
  struct Numbers {
    C lerp, fresh, beta2, eps, grad_scale;
    C decay, minus_step_size, root;  // the tensor's, once prepared
    bool near, maximize;             // near: of the two ends of m's interpolation, m is the base
    int32_t states, reads;
    DeviceNumbers device;
    const TensorNumbers* tensors;
  };

  template <class C>
  __device__ static Numbers<C> prepare(const Numbers<C>& numbers, int tensor) {
    Numbers<C> h = numbers;
    const TensorNumbers& t = numbers.tensors[tensor];
    h.decay = static_cast<C>(t.decay);
    h.minus_step_size = static_cast<C>(t.minus_step_size);
    h.root = static_cast<C>(t.correction2_root);
    if (numbers.device.grad_scale.data) h.grad_scale = static_cast<C>(number(numbers.device.grad_scale));
    return h;
  }

  template <class C>
  __device__ static void step(const Numbers<C>& h, C& param, C grad, C* states) {
    if (h.maximize) grad = -grad;
    if (h.grad_scale != C(1)) grad = grad / h.grad_scale;
    const C m = fused(h.lerp, grad - states[0], h.near ? states[0] : grad);
    const C v = fused(h.fresh * grad, grad, states[1] * h.beta2);
    C largest = v;
    if (h.states == 3) largest = states[2] > v || states[2] != states[2] ? states[2] : v;
    const C denominator = root_of(largest) / h.root + h.eps;
    param = param * h.decay + h.minus_step_size * m / denominator;
    states[0] = m;
    states[1] = v;
    states[2] = largest;
  }

  __device__ static float root_of(float x) { return __fsqrt_rn(x); }
  __device__ static double root_of(double x) { return __dsqrt_rn(x); }
};

constexpr int kStepsAtOnce = 480;

struct Steps {
  float* step[kStepsAtOnce];
};

// Counts the steps of `count` tensors and computes their constants.
__global__ void start_step(ACDC_CONSTANT(Steps) steps, int count, TensorNumbers* out, double lr, double beta1, double beta2, double weight_decay,
                           ACDC_CONSTANT(DeviceNumbers) device) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count || found_inf(device)) return;
  if (device.lr.data) lr = number(device.lr);
  const double step = *steps.step[i] += 1;
  out[i] = {1 - lr * weight_decay, -(lr / (1 - pow(beta1, step))), __dsqrt_rn(1 - pow(beta2, step))};
}

}  // namespace

cudaError_t masked_adamw_cuda(const UpdateTensor* tensors, float* const* counts, int count, const AdamWHyper& h, const DeviceNumbers& device,
                              void* scratch, cudaStream_t stream) {
  auto* constants = static_cast<TensorNumbers*>(scratch);
  for (int from = 0; from < count; from += kStepsAtOnce) {
    Steps steps;
    const int n = count - from < kStepsAtOnce ? count - from : kStepsAtOnce;
    for (int i = 0; i < n; ++i) steps.step[i] = counts[from + i];
    const unsigned threads = block_threads(64);
    const cudaError_t error = ACDC_LAUNCH(start_step, (static_cast<unsigned>(n) + threads - 1) / threads, threads, stream, steps, n, constants + from,
                                          h.lr, h.beta1, h.beta2, h.weight_decay, device);
    if (error != cudaSuccess) return error;
  }
  return launch_update<AdamW>(
      tensors, count,
      [&](auto precision) {
        using C = decltype(precision);
        const C weight = static_cast<C>(1 - h.beta1);
        const bool near = weight < C(0.5);
        const int states = h.amsgrad ? 3 : 2;
        return AdamW::Numbers<C>{near ? weight : weight - C(1), static_cast<C>(1 - h.beta2), static_cast<C>(h.beta2), static_cast<C>(h.eps),
                                 static_cast<C>(h.grad_scale), 0, 0, 0, near, h.maximize, states, states, device, constants};
      },
      stream);
}

}  // namespace acdc
