// What both devices' bindings of magnitude_histogram ask of its arguments, beside the device.
#pragma once
#include "bindings/convert.h"
#include "topk/histogram.h"

namespace acdc {

// The dtype of the weights, whose histogram has base.numel() rows.
inline DType check_histogram(const std::vector<Tensor>& weights, const Tensor& base, int64_t width, int64_t shift, const char* op) {
  STD_TORCH_CHECK(!weights.empty(), op, ": weights must have at least one tensor, got an empty list");
  const DType dtype = dtype_of(weights[0], op);
  for (const Tensor& w : weights)
    STD_TORCH_CHECK(dtype_of(w, op) == dtype && w.device() == base.device(), op, ": weights must share one dtype, and the device of base");
  STD_TORCH_CHECK(base.scalar_type() == ScalarType::Long && base.is_contiguous() &&
                      (base.numel() == 1 || base.numel() == static_cast<int64_t>(weights.size())),
                  op, ": base must be contiguous int64 of one entry, or one a weight");
  STD_TORCH_CHECK(shift >= 0 && shift <= width && width < 8 * element_bytes(dtype) && width - shift <= kHistogramBits, op,
                  ": width and shift must fit the dtype's keys, got ", width, " and ", shift);
  return dtype;
}

}  // namespace acdc
