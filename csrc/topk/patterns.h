// The structured patterns of topk_mask. A weight is [C_out, C_in, *kernel]: the output axis is dim 0, the input axis dim 1, and the
// kernel position is the same within a group, tile or block. Keys of weights, +-0 and NaN are topk.h's, and so is the law: the bits do
// not depend on thread count, ISA level or strides.
//
// n:m. Of each m consecutive weights along the input axis the n of largest key are kept, ties to the lowest index. Groups of 2, 4 and
// 8 are ranked by comparing each key with every other of its group, many groups a vector; other m by a bisection of the n-th key.
//
// 2:4-transposable. Tiles of 4 x 4 (output x input axis). Of the 90 masks with two kept in every row and column the one of largest
// ((s0 + s1) + s2) + s3 is kept, where sr is the sum of row r's two magnitudes in index order; all additions in float64. Of equal sums
// the mask whose kept indices (row-major in the tile) come first lexicographically; a NaN sum is above all others.
//
// block:RxC. A block is R weights along the output and C along the input axis; its score the sum of its magnitudes in float64, added in
// index order from 0.0, divided by R * C. The blocks of largest score are kept, ties to the lowest (tensor, logical index of the
// block's first weight); every NaN score is one key above Inf. Where all scores take no more than 2% of the weights' bytes (or 512
// KiB) they are stored; else they are computed anew each time topk.h's selection reads one. The bits of blocks are first written to
// the front of each mask and then spread out over it, from its end.
//
// Memory: n:m and 2:4-transposable need a few KiB of stack a thread and lists of work of less than 0.3%; block:RxC as topk.h.
#pragma once
#include <cstdint>

#include "topk/topk.h"

namespace acdc {

struct PatternProblem {
  DType dtype;
  const TensorRef* weights;  // [tensors]; any strides; at least two dims, which the pattern divides
  uint8_t* const* bits;      // [tensors]; (numel + 7) / 8 bytes each, all written, unused bits 0
  int64_t* nan_count;        // [tensors]; NaN weights; written
  int tensors;
};

// 1 <= n < m; every dim 1 is a multiple of m.
void n_m_mask_cpu(const PatternProblem& problem, int64_t n, int64_t m, const Pool& pool);

// Dims 0 and 1 are multiples of 4.
void transposable_mask_cpu(const PatternProblem& problem, const Pool& pool);

struct BlockShape {
  int64_t rows, columns;
};

// Bytes of scratch that block_mask_cpu needs for `numel` weights over all tensors.
int64_t block_scratch_bytes(DType dtype, int64_t numel, BlockShape block, int threads);

// Dims 0 and 1 are multiples of rows and columns; `keep` counts blocks over all tensors. `scratch` and the path are topk_mask_cpu's.
TopkPath block_mask_cpu(const PatternProblem& problem, BlockShape block, int64_t keep, void* scratch, int64_t scratch_bytes,
                        const Pool& pool);

}  // namespace acdc
