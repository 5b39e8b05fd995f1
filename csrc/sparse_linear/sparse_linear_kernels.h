// The inner loops of the sparse products, one table an ISA level. A tile is 32 or 16 samples, feature by feature: [features][width].
#pragma once
#include <cstdint>

#include "sparse_linear/bundles.h"

namespace acdc {

constexpr int kTile = 32, kHalfTile = 16;

struct SparseLinearKernels {
  // tile[c][n] = x[n][c] for n < samples, 0 for the others up to `width`.
  void (*pack)(const float* x, int64_t row_stride, int64_t samples, int64_t cols, float* tile, int width);
  // y[n][r] = tile[r][n] for n < samples.
  void (*unpack)(const float* tile, int width, int64_t rows, float* y, int64_t row_stride, int64_t samples);
  // y[row][:] += values of one (panel, block) times tile[column][:]; y is [panel_rows + 1][width], tile begins at the block.
  // entry: which of its forms an offset has.
  void (*apply)(const Bundle* bundles, int count, const int16_t* offsets, const float* values, const float* tile, float* y, int width);
  void (*apply_4x1)(const Bundle* bundles, int count, const int16_t* offsets, const float* values, const float* tile, float* y, int width);
  void (*apply_1x4)(const Bundle* bundles, int count, const int16_t* offsets, const float* values, const float* tile, float* y, int width);
  // out[i] += sum over samples of dy[row of value i] * x[column of value i], for the values of one (panel, block) and one tile, or two
  // tiles of 32 (x2, dy2 not null). dy is [panel_rows + 1][width].
  void (*dots)(const Bundle* bundles, int count, const int16_t* offsets, const float* x, const float* dy, const float* x2, const float* dy2,
               float* out, int width);
  void (*dots_4x1)(const Bundle* bundles, int count, const int16_t* offsets, const float* x, const float* dy, const float* x2,
                   const float* dy2, float* out, int width);
};

const SparseLinearKernels& sparse_linear_kernels();
const SparseLinearKernels& sparse_linear_kernels_generic();
const SparseLinearKernels& sparse_linear_kernels_avx2();
const SparseLinearKernels& sparse_linear_kernels_avx512();

}  // namespace acdc
