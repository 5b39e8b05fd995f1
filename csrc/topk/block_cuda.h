// Pattern block:RxC of topk_mask on a GPU: patterns.h says what it means, and gives the same bits. What topk_cuda.h says of pointers holds.
//
// Scores that take no more than 2% of the weights' bytes are computed once, a thread a block, for their order of additions is a law, and
// stored; others are computed anew whenever the selection reads them. It gives a bit a block, which the last kernel spreads over masks.
// Memory: scratch stays within 3% of the weights' bytes + 400 KiB, but for 16-bit weights in blocks of two, whose bits alone are 3.1%.
#pragma once
#include "topk/patterns.h"
#include "topk/topk_cuda.h"

namespace acdc {

struct BlockWeight {
  DeviceWeight weight;
  int64_t inputs, kernel;  // dim 1, and the product of all dims behind it
};

struct BlockProblem {
  DType dtype;
  const BlockWeight* weights;  // [tensors], host memory
  int64_t tensors;
  int64_t* nan_count;          // [tensors]; written: NaN weights
  BlockShape block;            // divides dims 0 and 1
  int64_t keep;                // blocks, over all weights
};

int64_t block_cuda_scratch_bytes(const BlockProblem& problem);

// `scratch` is aligned to 16 bytes.
cudaError_t block_mask_cuda(const BlockProblem& problem, void* scratch, cudaStream_t stream);

}  // namespace acdc
