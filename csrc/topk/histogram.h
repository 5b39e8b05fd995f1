// magnitude_histogram: how many keys (topk.h) lie in each bin of an interval, and how many above it. What a selection over processes sums.
//
// For row r the bins are (key - base[r]) >> shift of the keys in base[r] + [0, 2^width), of which there are 2^(width - shift); one more
// count is that of the keys above. Width 0 gives those equal to base[r], and those greater.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"
#include "common/strided.h"

namespace acdc {

constexpr int kHistogramBits = 12;  // width - shift is at most this

struct HistogramProblem {
  DType dtype;
  const TensorRef* weights;  // [tensors]; any strides
  int tensors;
  const int64_t* base;       // [rows]; each in [0, 2^(bits of the key))
  bool row_each;             // weight i is counted in row i; otherwise all in row 0
  int width, shift;          // 0 <= shift <= width <= bits of the key
};

// Bytes of scratch that magnitude_histogram_cpu needs: at most 256 KiB.
int64_t histogram_scratch_bytes(int width, int shift, int threads);

// Writes counts [rows, 2^(width - shift) + 1]. `scratch` is aligned to 4 bytes.
void magnitude_histogram_cpu(const HistogramProblem& problem, int64_t* counts, void* scratch, const Pool& pool);

}  // namespace acdc
