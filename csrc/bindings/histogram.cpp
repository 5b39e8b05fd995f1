#include "topk/histogram.h"

#include "bindings/convert.h"

namespace acdc {
namespace {

Tensor magnitude_histogram(std::vector<Tensor> weights, const Tensor& base, int64_t width, int64_t shift) {
  const char* op = "magnitude_histogram";
  STD_TORCH_CHECK(!weights.empty(), op, ": weights must have at least one tensor, got an empty list");
  const DType dtype = dtype_of(weights[0], op);
  const int64_t rows = base.numel();
  STD_TORCH_CHECK(base.is_cpu() && base.scalar_type() == ScalarType::Long && base.is_contiguous() &&
                      (rows == 1 || rows == static_cast<int64_t>(weights.size())),
                  op, ": base must be contiguous int64 of one entry, or one a weight");
  STD_TORCH_CHECK(shift >= 0 && shift <= width && width < 8 * element_bytes(dtype) && width - shift <= kHistogramBits, op,
                  ": width and shift must fit the dtype's keys, got ", width, " and ", shift);
  std::vector<TensorRef> refs;
  for (const Tensor& w : weights) {
    STD_TORCH_CHECK(w.is_cpu() && dtype_of(w, op) == dtype, op, ": weights must share one dtype and device");
    refs.push_back(ref(w));
  }
  const int w = static_cast<int>(width), s = static_cast<int>(shift);
  const Pool threads = pool();
  Tensor counts = torch::stable::new_empty(base, {rows, (int64_t{1} << (w - s)) + 1}, ScalarType::Long);
  Tensor scratch = torch::stable::new_empty(base, {histogram_scratch_bytes(w, s, threads.threads)}, ScalarType::Byte);
  magnitude_histogram_cpu({dtype, refs.data(), static_cast<int>(refs.size()), static_cast<const int64_t*>(base.const_data_ptr()),
                           rows == static_cast<int64_t>(weights.size()), w, s},
                          static_cast<int64_t*>(counts.mutable_data_ptr()), scratch.mutable_data_ptr(), threads);
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, CPU, m) { m.impl("magnitude_histogram", TORCH_BOX(&magnitude_histogram)); }

}  // namespace acdc
