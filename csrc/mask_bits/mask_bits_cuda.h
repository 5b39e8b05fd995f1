// pack_mask, unpack_mask, apply_mask on a GPU: mask_bits.h says what they mean. All pointers are device memory; masks start on a multiple
// of 4 bytes.
#pragma once
#include "common/cuda.h"
#include "common/layout.h"

namespace acdc {

// `mask` holds one byte an element; writes (numel + 7) / 8 bytes.
cudaError_t pack_mask_cuda(const uint8_t* mask, const Layout& layout, uint8_t* bits, cudaStream_t stream);

// Writes numel bytes, 0 or 1.
cudaError_t unpack_mask_cuda(const uint8_t* bits, uint8_t* mask, int64_t numel, cudaStream_t stream);

struct MaskedLayout {
  void* data;
  const uint8_t* bits;
  int64_t element_bytes;  // 2, 4 or 8
  int64_t first_chunk;    // of all tensors' chunks, how many come before this one's
  Layout layout;
};

constexpr int64_t kApplyChunk = 8192;

// Zero bytes (+0.0) to every element whose bit is 0. `table` is the device's copy of `tensors`, of which none is empty.
cudaError_t apply_mask_cuda(const MaskedLayout* tensors, int64_t count, void* table, cudaStream_t stream);

}  // namespace acdc
