#include <algorithm>
#include <tuple>

#include "bindings/cuda/device.h"
#include "bindings/topk_pattern.h"
#include "topk/topk_cuda.h"

namespace acdc {
namespace {

// What kernels read: the tensor, or a copy of one with more axes that don't lie one after another than a layout has.
Layout layout_or_copy(Tensor* w) {
  Layout layout;
  if (!make_layout(ref(*w), &layout)) {
    *w = torch::stable::contiguous(*w);
    make_layout(ref(*w), &layout);
  }
  return layout;
}

std::tuple<std::vector<Tensor>, Tensor> topk_mask(std::vector<Tensor> weights, std::vector<int64_t> keep, StringHandle pattern_handle) {
  const char* op = "topk_mask";
  const std::string pattern = take_string(pattern_handle);
  const Pattern p = parse(pattern);
  check_budgets(weights, keep, p);
  STD_TORCH_CHECK(p.kind == Pattern::unstructured, "topk_mask: pattern must be 'unstructured' on this device, got '", pattern, "'");
  const DType dtype = dtype_of(weights[0], op);
  for (const Tensor& w : weights) {
    check_device(w, weights[0], op);
    STD_TORCH_CHECK(dtype_of(w, op) == dtype, "topk_mask: weights must share one dtype and device");
    check_fits(w, p);
  }
  const OnDevice device(weights[0]);
  const auto n = static_cast<int64_t>(weights.size());
  std::vector<Tensor> masks;
  std::vector<DeviceWeight> table;
  for (Tensor& w : weights) {
    masks.push_back(torch::stable::new_empty(w, {(w.numel() + 7) / 8}, ScalarType::Byte));
    const Layout layout = layout_or_copy(&w);
    table.push_back({w.const_data_ptr(), static_cast<uint8_t*>(masks.back().mutable_data_ptr()), layout});
  }
  Tensor nan_count = torch::stable::new_empty(weights[0], {n}, ScalarType::Long);
  int64_t* nan = static_cast<int64_t*>(nan_count.mutable_data_ptr());
  const int64_t each = keep.size() == 1 ? n : 1;  // weights that share a budget
  std::vector<TopkCudaProblem> problems;
  int64_t scratch_bytes = 0;
  for (int64_t first = 0; first < n; first += each) {
    int64_t numel = 0;
    for (int64_t t = first; t < first + each; ++t) numel += table[t].layout.numel;
    STD_TORCH_CHECK(keep[first] >= 0 && keep[first] <= numel, "topk_mask: keep must be in [0, ", numel, "], got ", keep[first]);
    problems.push_back({dtype, table.data() + first, each, nan + first, keep[first]});
    scratch_bytes = std::max(scratch_bytes, topk_cuda_scratch_bytes(problems.back()));
  }
  Tensor scratch = device_bytes(weights[0], scratch_bytes);
  for (const TopkCudaProblem& problem : problems) check_launch(topk_mask_cuda(problem, aligned16(scratch), false, device.stream), op);
  return {std::move(masks), std::move(nan_count)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, ACDC_DEVICE_KEY, m) { m.impl("topk_mask", TORCH_BOX(&topk_mask)); }

}  // namespace acdc
