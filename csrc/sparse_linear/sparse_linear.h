// Products of a sparse weight [rows, cols] with a batch of samples, float32:
//
//   forward          y = x W^T + bias          y [n, rows], x [n, cols]
//   input gradient   dx = dy W                 dx [n, cols], dy [n, rows]
//   weight gradient  dvalues[i] = sum_n dy[n, row_i] x[n, col_i]
//
// Samples are taken 32 at a time (the last 16, if no more are left): their features are packed into a tile, feature by feature, so that
// a value multiplies whole vectors of samples; results are transposed back. Only kept weights are multiplied, so an infinite or NaN
// input reaches no output that a kept weight doesn't connect it to. The same bits for every thread count.
#pragma once
#include <cstdint>

#include "sparse_linear/bundles.h"

namespace acdc {

struct SparseWeight {
  BundleFormat format;
  int64_t kept;
  const float* values;  // [kept]
  BundleSide rows_side, cols_side;
  const int32_t* permutation;  // entry of the columns side -> place of its value (4x1: its block of four)

  int64_t rows() const { return rows_side.rows; }
  int64_t cols() const { return rows_side.cols; }
};

// A batch in memory: n samples, features contiguous, samples `stride` floats apart.
template <class T>
struct Batch {
  T* data;
  int64_t stride;
};

// Floats that `samples` samples of `features` features take as tiles.
inline int64_t tile_floats(int64_t samples, int64_t features) { return (samples + 15) / 16 * 16 * features; }

// tiles: nullptr, or tile_floats(n, cols) floats that get the packed input, for the weight gradient.
void sparse_linear_forward_cpu(const SparseWeight& w, int64_t n, Batch<const float> x, const float* bias, Batch<float> y, float* tiles,
                               const Pool& pool);

// The same in float16 (see half_kernels.h), for BundleFormat::single where half_kernels() is not nullptr; tiles are float32 all the same.
void sparse_linear_forward_half_cpu(const SparseWeight& w, int64_t n, Batch<const float> x, const float* bias, Batch<float> y, float* tiles,
                                    const Pool& pool);

// What is nullptr is not computed. The input as it was packed (tiles) or, if that is nullptr, as it is (x).
struct SparseLinearGradients {
  Batch<const float> dy;
  Batch<const float> x;
  const float* tiles;
  Batch<float> dx;
  float* dvalues;  // [kept]
};
void sparse_linear_backward_cpu(const SparseWeight& w, int64_t n, const SparseLinearGradients& g, const Pool& pool);

}  // namespace acdc
