// The structured patterns of topk_mask on a GPU: patterns.h says what they mean, and gives the same bits. All pointers but the array of
// weights are device memory. Nothing waits for the device and nothing is kept: a CUDA graph may capture it.
//
// n:m reads the weights once from memory. Contiguous weights without kernel positions in groups of 2, 4 and 8 are ranked in registers, a
// thread eight at a time; all others by a thread a weight that reads the m of its group, mostly from caches.
//
// 2:4-transposable reads them once, a tile a thread: 24 + 36 + 180 additions of doubles. The bits of a block's tiles meet in shared memory.
//
// block:RxC. Where all scores take at most 2% of the weights' bytes, or there are fewer than 65536, they are stored, blocks of 64 weights and
// more summed by a warp each: in any order where that is known to be exact, else in the contract's, one addition after another. Smaller
// blocks are scored anew at each of selection_cuda.h's reads, by a thread each. Then the bits of blocks, which the selection leaves at the
// front of each mask, are copied to scratch memory and spread out.
#pragma once
#include "common/cuda.h"
#include "common/layout.h"
#include "topk/patterns.h"

namespace acdc {

// A weight as [outputs, inputs, kernel].
struct PatternWeight {
  const void* data;
  uint8_t* bits;  // as DeviceWeight's: begins on a multiple of 4 bytes in memory that is a multiple of 4 bytes long
  int64_t numel, inputs, kernel;
  int64_t output_stride, input_stride;  // in elements
  Layout places;                        // of the kernel positions
  bool contiguous;
};

// False if the kernel positions lie in more ways than a layout has. `t` has at least two dims.
bool make_pattern_weight(const TensorRef& t, uint8_t* bits, PatternWeight* weight);

struct PatternCudaProblem {
  DType dtype;
  const PatternWeight* weights;  // [tensors], host memory; the pattern divides them
  int64_t tensors;
  int64_t* nan_count;            // [tensors]; NaN weights; written
};

// Scratch memory of n_m_mask_cuda and transposable_mask_cuda: 88 bytes a tensor, 232 one whose kernel positions are not one stride apart.
int64_t pattern_cuda_scratch_bytes(const PatternCudaProblem& problem);

// 1 <= n < m. `scratch` is aligned to 16 bytes.
cudaError_t n_m_mask_cuda(const PatternCudaProblem& problem, int64_t n, int64_t m, void* scratch, cudaStream_t stream);

cudaError_t transposable_mask_cuda(const PatternCudaProblem& problem, void* scratch, cudaStream_t stream);

// At most 2.8% of the weights' bytes + 720 KiB, and some 300 bytes a tensor. (Two bytes a weight, two weights a block and fewer than 64
// rows of blocks: 3.2%.)
int64_t block_cuda_scratch_bytes(const PatternCudaProblem& problem, BlockShape block);

// `keep` counts blocks. `scratch` begins with the TopkPath that was taken, an int. `force_radix` skips the bracket (tests).
cudaError_t block_mask_cuda(const PatternCudaProblem& problem, BlockShape block, int64_t keep, void* scratch, bool force_radix,
                            cudaStream_t stream);

}  // namespace acdc
