#include "bindings/histogram_checks.h"

namespace acdc {
namespace {

Tensor magnitude_histogram(std::vector<Tensor> weights, const Tensor& base, int64_t width, int64_t shift) {
  const char* op = "magnitude_histogram";
  const DType dtype = check_histogram(weights, base, width, shift, op);
  STD_TORCH_CHECK(base.is_cpu(), op, ": tensors must be on the CPU");
  const int64_t rows = base.numel();
  std::vector<TensorRef> refs;
  for (const Tensor& w : weights) refs.push_back(ref(w));
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
