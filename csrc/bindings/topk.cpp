#include "topk/topk.h"

#include <tuple>

#include "bindings/convert.h"

namespace acdc {
namespace {

std::tuple<std::vector<Tensor>, Tensor> topk_mask(std::vector<Tensor> weights, std::vector<int64_t> keep, std::string pattern) {
  STD_TORCH_CHECK(pattern == "unstructured", "topk_mask: pattern must be 'unstructured', got '", pattern, "'");
  STD_TORCH_CHECK(!weights.empty() && (keep.size() == 1 || keep.size() == weights.size()), "topk_mask: keep must have one entry, or one a weight");
  const DType dtype = dtype_of(weights[0], "topk_mask");
  const int n = static_cast<int>(weights.size());
  std::vector<TensorRef> refs;
  std::vector<uint8_t*> bits;
  std::vector<Tensor> masks;
  int64_t total = 0, largest = 0;
  for (const Tensor& w : weights) {
    STD_TORCH_CHECK(w.is_cpu() && dtype_of(w, "topk_mask") == dtype, "topk_mask: weights must share one dtype and device");
    refs.push_back(ref(w));
    masks.push_back(torch::stable::new_empty(w, {(w.numel() + 7) / 8}, ScalarType::Byte));
    bits.push_back(static_cast<uint8_t*>(masks.back().mutable_data_ptr()));
    total += w.numel();
    largest = w.numel() > largest ? w.numel() : largest;
  }
  Tensor nan_count = torch::stable::new_empty(weights[0], {n}, ScalarType::Long);
  int64_t* nan = static_cast<int64_t*>(nan_count.mutable_data_ptr());
  const Pool threads = pool();
  const bool one_budget = keep.size() == 1;
  const int64_t scratch_bytes = topk_scratch_bytes(dtype, one_budget ? total : largest, threads.threads);
  Tensor scratch = torch::stable::new_empty(weights[0], {scratch_bytes + 64}, ScalarType::Byte);
  auto address = reinterpret_cast<uintptr_t>(scratch.mutable_data_ptr());
  void* aligned = reinterpret_cast<void*>((address + 63) / 64 * 64);
  for (int first = 0; first < n; first += one_budget ? n : 1) {
    const int count = one_budget ? n : 1;
    int64_t numel = 0;
    for (int t = first; t < first + count; ++t) numel += refs[t].numel;
    STD_TORCH_CHECK(keep[first] >= 0 && keep[first] <= numel, "topk_mask: keep must be in [0, ", numel, "], got ", keep[first]);
    topk_mask_cpu({dtype, refs.data() + first, bits.data() + first, nan + first, count, keep[first]}, aligned, scratch_bytes, threads, false);
  }
  return {std::move(masks), std::move(nan_count)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, CPU, m) { m.impl("topk_mask", TORCH_BOX(&topk_mask)); }

}  // namespace acdc
