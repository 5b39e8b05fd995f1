// The forward product with float16 activations and weights, for processors that multiply those (AVX512-FP16).
//
// At most 16 products of a row are summed in float16 before they are added to its float32 sum. Inputs beyond 65504 become infinite.
#pragma once
#include <cstdint>

#include "sparse_linear/bundles.h"

namespace acdc {

constexpr int kHalfTileWidth = 64;  // samples; 32 where no more are left
constexpr int kHalfTerms = 16;

struct HalfKernels {
  void (*to_half)(const float* from, int64_t n, uint16_t* to);
  // y[row][:] += values of one (panel, block) times tile[column][:], for tiles of 64 or 32 samples; y is float32 [panel_rows + 1][width].
  void (*apply)(const Bundle* bundles, int count, const int16_t* offsets, const uint16_t* values, const uint16_t* tile, float* y, int width);
};

// nullptr where this processor or build can't; ACDC_CPU_FP16=emulated gives slow loops that round as the instructions do, for tests.
const HalfKernels* half_kernels();
const HalfKernels& half_kernels_emulated();
const HalfKernels& half_kernels_native();

}  // namespace acdc
