// topk_mask on a GPU: topk.h says what it means, and gives the same bits. All pointers but the array of weights are device memory.
//
// Nothing waits for the device and nothing is kept: a CUDA graph may capture it. Method, launches and bytes: selection_cuda.h. Of 25.6
// million float32 weights the one read takes 24 us at 4.3 TB/s; ten small launches are the rest.
#pragma once
#include "common/cuda.h"
#include "common/dtype.h"
#include "common/layout.h"

namespace acdc {

struct DeviceWeight {
  const void* data;
  uint8_t* bits;  // begins on a multiple of 4 bytes in memory that is a multiple of 4 bytes long; (numel + 7) / 8 bytes are written, unused bits 0
  Layout layout;
};

struct TopkCudaProblem {
  DType dtype;
  const DeviceWeight* weights;  // [tensors], host memory
  int64_t tensors;
  int64_t* nan_count;           // [tensors]; written
  int64_t keep;                 // in [0, total elements]
};

// At most 2.3% of the weights' bytes + 400 KiB, and 56 bytes a tensor, 200 one that is not contiguous.
int64_t topk_cuda_scratch_bytes(const TopkCudaProblem& problem);

// `scratch` is aligned to 16 bytes and has topk_cuda_scratch_bytes; it begins with the TopkPath that was taken, an int. `force_radix` skips
// the bracket (tests).
cudaError_t topk_mask_cuda(const TopkCudaProblem& problem, void* scratch, bool force_radix, cudaStream_t stream);

}  // namespace acdc
