// masked_sgd, masked_adamw on a GPU: masked_update.h says what they mean, and in which order they round. All data is device memory.
//
// One launch updates all contiguous tensors of one type, another all others. Nothing is read back, and no memory but a kernel's
// arguments holds anything about the tensors: calls can be captured in a CUDA graph.
// Where a whole byte of a mask is 0, only that byte is read: +0.0 is written, or nothing at all for tensors whose zeros are kept.
#pragma once
#include "common/cuda.h"
#include "masked_update/masked_update.h"

namespace acdc {

// A number that kernels read when they run; data is nullptr where there is none.
struct DeviceNumber {
  const void* data;
  DType dtype;
};

// They take the place of numbers in an update's hyper-parameters. Where found_inf isn't 0, nothing changes.
struct DeviceNumbers {
  DeviceNumber lr, grad_scale, found_inf;
};

// Whether the axes of the tensor can be joined to no more than kLayoutDims; the updates take no others.
bool can_update_cuda(const UpdateTensor& tensor);

cudaError_t masked_sgd_cuda(const UpdateTensor* tensors, int count, const SgdHyper& hyper, const DeviceNumbers& device, cudaStream_t stream);

constexpr int64_t kAdamWScratch = 24;  // bytes a tensor, aligned to 8

cudaError_t masked_adamw_cuda(const UpdateTensor* tensors, float* const* steps, int count, const AdamWHyper& hyper,
                              const DeviceNumbers& device, void* scratch, cudaStream_t stream);

}  // namespace acdc
