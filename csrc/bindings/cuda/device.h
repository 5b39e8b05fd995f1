// What the bindings of CUDA kernels share: the device, the stream, tensors as kernels see them. Compiled for the emulator, the same
// bindings take CPU tensors and register themselves for them.
#pragma once
#include "bindings/convert.h"
#include "common/cuda.h"
#include "common/layout.h"

#ifdef ACDC_CUDA_EMULATED
#define ACDC_DEVICE_KEY CPU
#else
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#define ACDC_DEVICE_KEY CUDA
#endif

namespace acdc {

#ifdef ACDC_CUDA_EMULATED
inline bool on_device(const Tensor& t) { return t.is_cpu(); }

struct OnDevice {
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream = nullptr;
};
#else
inline bool on_device(const Tensor& t) { return t.is_cuda(); }

// torch's function for it, of the library that torch has loaded. Not linked to: beside a torch without CUDA there is none, and the library
// loads there all the same, and its CPU kernels run.
inline void* current_stream(int32_t device_index) {
  using Get = int32_t (*)(int32_t, void**);
  static const auto get = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Get>(torch_cuda ? dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  STD_TORCH_CHECK(get != nullptr, "acdc_kernels: this torch has no CUDA, so CUDA kernels can't run: libtorch_cuda.so is not loaded");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get(device_index, &stream));
  return stream;
}

// While it lives, the current device is that of `t`; and its current stream.
struct OnDevice {
  explicit OnDevice(const Tensor& t) : guard(t.get_device_index()), stream(static_cast<cudaStream_t>(current_stream(t.get_device_index()))) {}
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};
#endif

inline void check_launch(cudaError_t error, const char* op) {
#ifndef ACDC_CUDA_EMULATED
  STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice, op, ": the CUDA kernels were not built for this card: acdc-kernels info says for which");
#endif
  STD_TORCH_CHECK(error == cudaSuccess, op, ": a CUDA kernel could not be launched: ", cudaGetErrorString(error));
}

// The same device, for tensors that kernels take together.
inline void check_device(const Tensor& t, const Tensor& first, const char* op) {
  STD_TORCH_CHECK(on_device(t) && t.get_device_index() == first.get_device_index(), op, ": tensors must be on one device");
}

inline const uint8_t* device_bits_of(const Tensor& bits, int64_t numel, const Tensor& first, const char* op) {
  check_device(bits, first, op);
  STD_TORCH_CHECK(bits.scalar_type() == ScalarType::Byte && bits.is_contiguous() && bits.numel() == (numel + 7) / 8, op,
                  ": a mask must be contiguous uint8 of one bit an element");
  return static_cast<const uint8_t*>(bits.const_data_ptr());
}

// Raises for what only tensors with more than kLayoutDims axes that can't be joined have.
inline Layout layout_of(const Tensor& t, const char* op) {
  Layout layout;
  STD_TORCH_CHECK(make_layout(ref(t), &layout), op, ": a tensor must have at most ", kLayoutDims, " axes that do not lie one after another");
  return layout;
}

// A table's memory on the device of `like`.
inline Tensor device_bytes(const Tensor& like, int64_t bytes) { return torch::stable::new_empty(like, {bytes + 16}, ScalarType::Byte); }

inline void* aligned16(Tensor& memory) {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.mutable_data_ptr()) + 15) / 16 * 16);
}

}  // namespace acdc
