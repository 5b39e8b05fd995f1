// topk_mask: the bits of the k elements of largest magnitude, over one tensor or many.
//
// Exactly k bits are set over all tensors together. Order: the key of an element is its bit pattern without the sign, as an
// unsigned integer, every NaN mapped to one key just above Inf; larger keys first, ties by (tensor order, logical row-major index).
// So +0 and -0 tie, denormals are ordered, and the bits do not depend on thread count, ISA level or the sampled bracket.
//
// Method. A sample gives a bracket [low, high] of keys that holds the k-th largest with high probability. One pass over the weights
// writes the bits of all keys above the bracket and collects the ~1% inside it; an exact selection among those patches the bits. If
// the bracket missed, or too much fell inside it (ties), an exact radix selection reads the weights again. 16-bit and small inputs go
// to the radix selection at once.
//
// Memory: `scratch` is at most 2.5% of the weights' bytes + 900 KiB, so that with the lists of chunks (below 0.3% for tensors of 16384
// elements and more, some 60 bytes a tensor for smaller ones) the whole stays within 3% + 1 MiB.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"
#include "common/strided.h"

namespace acdc {

enum class TopkPath : int { radix, bracket, bracket_missed };

struct TopkProblem {
  DType dtype;
  const TensorRef* weights;  // [tensors]; any strides
  uint8_t* const* bits;      // [tensors]; (numel + 7) / 8 bytes each, all written, unused bits 0
  int64_t* nan_count;        // [tensors]; written
  int tensors;
  int64_t keep;              // in [0, total elements]
};

// Bytes of scratch that topk_mask_cpu needs for `numel` elements over all tensors.
int64_t topk_scratch_bytes(DType dtype, int64_t numel, int threads);

// `scratch` is aligned to 64 bytes. `force_radix` skips the bracket (tests). Returns the path taken.
TopkPath topk_mask_cpu(const TopkProblem& problem, void* scratch, int64_t scratch_bytes, const Pool& pool, bool force_radix);

}  // namespace acdc
