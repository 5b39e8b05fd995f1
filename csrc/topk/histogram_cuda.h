// magnitude_histogram on a GPU: histogram.h says what it counts. All pointers are device memory but that of `weights`.
#pragma once
#include "common/cuda.h"
#include "common/dtype.h"
#include "common/layout.h"

namespace acdc {

struct CountedLayout {
  const void* data;
  int64_t row;
  int64_t first_chunk;  // of all weights' chunks, how many come before this one's
  Layout layout;
};

constexpr int64_t kCountChunk = 8192;

struct CudaHistogramProblem {
  DType dtype;
  const CountedLayout* weights;  // [tensors] on the host, of which none is empty; rows ascend
  int64_t tensors;
  const int64_t* base;           // [rows]
  int64_t rows;
  int width, shift;
};

// Writes counts [rows, 2^(width - shift) + 1]. `table` is room for the device's copy of the weights' layouts, aligned to 16 bytes.
cudaError_t magnitude_histogram_cuda(const CudaHistogramProblem& problem, int64_t* counts, void* table, cudaStream_t stream);

}  // namespace acdc
