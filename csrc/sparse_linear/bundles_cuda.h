// Building an index and moving values through it on a GPU: bundles.h says what they mean. All pointers are device memory. Nothing waits for
// the device, so nothing is said of what a mask holds: where it isn't what the index says, all that is written lies within the arrays, and
// the results are of no use.
#pragma once
#include "common/cuda.h"
#include "sparse_linear/bundles.h"

namespace acdc {

// What build_bundles_cuda needs besides the index.
int64_t build_bundles_scratch(int64_t rows, int64_t cols);

// `scratch` is aligned to 2 bytes, bundles to 16. The caller has counted the mask's bits and compared the rows of 4x1 groups.
cudaError_t build_bundles_cuda(const uint8_t* bits, const BundleIndex& index, void* scratch, cudaStream_t stream);

// The mask and the parts of its index that say where values lie.
struct ValuePlaces {
  const uint8_t* bits;
  const int64_t* rank;
  const int32_t* position;
  int64_t rows, cols, kept;
};

// Values of a run of 4096 weights in which `bits` keeps another number than when the index was built become NaN, and so do the weights of
// such a run that `bits` keeps when values are scattered.
cudaError_t gather_values_cuda(const void* weight, int64_t row_stride, int64_t col_stride, const ValuePlaces& places, int bytes, void* values,
                               cudaStream_t stream);
cudaError_t scatter_values_cuda(const void* values, const ValuePlaces& places, int bytes, void* weight, cudaStream_t stream);

}  // namespace acdc
