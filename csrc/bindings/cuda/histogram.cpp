#include "bindings/cuda/device.h"
#include "bindings/histogram_checks.h"
#include "topk/histogram_cuda.h"

namespace acdc {
namespace {

Tensor magnitude_histogram(std::vector<Tensor> weights, const Tensor& base, int64_t width, int64_t shift) {
  const char* op = "magnitude_histogram";
  const DType dtype = check_histogram(weights, base, width, shift, op);
  check_device(base, weights[0], op);
  const int64_t rows = base.numel();
  std::vector<CountedLayout> table;
  int64_t chunks = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    if (w.numel() == 0) continue;
    table.push_back({w.const_data_ptr(), rows == 1 ? 0 : static_cast<int64_t>(i), chunks, layout_of(w, op)});
    chunks += (w.numel() + kCountChunk - 1) / kCountChunk;
  }
  const OnDevice device(weights[0]);
  const int64_t count = static_cast<int64_t>(table.size());
  Tensor counts = torch::stable::new_empty(base, {rows, (int64_t{1} << (width - shift)) + 1}, ScalarType::Long);
  Tensor memory = device_bytes(base, count * static_cast<int64_t>(sizeof(CountedLayout)));
  check_launch(magnitude_histogram_cuda({dtype, table.data(), count, static_cast<const int64_t*>(base.const_data_ptr()), rows,
                                         static_cast<int>(width), static_cast<int>(shift)},
                                        static_cast<int64_t*>(counts.mutable_data_ptr()), aligned16(memory), device.stream),
               op);
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, ACDC_DEVICE_KEY, m) { m.impl("magnitude_histogram", TORCH_BOX(&magnitude_histogram)); }

}  // namespace acdc
