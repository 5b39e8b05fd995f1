// pack_mask, unpack_mask, apply_mask: bit i & 7 of byte i >> 3 is logical row-major element i; unused bits of the last byte are 0.
#pragma once
#include <cstdint>

#include "common/parallel.h"
#include "common/strided.h"

namespace acdc {

// `mask` holds one byte an element, zero or not, any strides; writes (numel + 7) / 8 bytes.
void pack_mask_cpu(const TensorRef& mask, uint8_t* bits, const Pool& pool);

// Writes numel bytes, 0 or 1.
void unpack_mask_cpu(const uint8_t* bits, uint8_t* mask, int64_t numel, const Pool& pool);

struct MaskedTensor {
  TensorRef tensor;
  const uint8_t* bits;
  int64_t element_bytes;  // 2, 4 or 8
};

// Zero bytes (+0.0) to every element whose bit is 0; the others are not touched.
void apply_mask_cpu(const MaskedTensor* tensors, int count, const Pool& pool);

}  // namespace acdc
