#include <algorithm>
#include <tuple>

#include "bindings/cuda/device.h"
#include "bindings/topk_pattern.h"
#include "topk/patterns_cuda.h"
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

int64_t numel_of(const DeviceWeight& w) { return w.layout.numel; }
int64_t numel_of(const PatternWeight& w) { return w.numel; }

PatternWeight weight_or_copy(Tensor* w, uint8_t* bits) {
  PatternWeight weight;
  if (!make_pattern_weight(ref(*w), bits, &weight)) {
    *w = torch::stable::contiguous(*w);
    make_pattern_weight(ref(*w), bits, &weight);
  }
  return weight;
}

// A pass over all weights, or one over each budget's.
template <class Weight, class ScratchBytes, class Run>
void run_budgets(const std::vector<Weight>& table, const std::vector<int64_t>& keep, int64_t unit, Tensor& first, const ScratchBytes& scratch_bytes, const Run& run) {
  const auto n = static_cast<int64_t>(table.size()), each = keep.size() == 1 ? n : int64_t{1};
  int64_t bytes = 0;
  for (int64_t t = 0; t < n; t += each) {
    int64_t numel = 0;
    for (int64_t i = t; i < t + each; ++i) numel += numel_of(table[i]);
    const int64_t k = keep[t / each];
    STD_TORCH_CHECK(k >= 0 && k <= numel && k % unit == 0, "topk_mask: keep must be in [0, ", numel, "] and a multiple of ", unit, ", got ", k);
    bytes = std::max(bytes, scratch_bytes(t, each));
  }
  Tensor scratch = device_bytes(first, bytes);
  for (int64_t t = 0; t < n; t += each) check_launch(run(t, each, keep[t / each] / unit, aligned16(scratch)), "topk_mask");
}

std::tuple<std::vector<Tensor>, Tensor> topk_mask(std::vector<Tensor> weights, std::vector<int64_t> keep, StringHandle pattern_handle) {
  const char* op = "topk_mask";
  const std::string pattern = take_string(pattern_handle);
  const Pattern p = parse(pattern);
  check_budgets(weights, keep, p);
  const DType dtype = dtype_of(weights[0], op);
  for (const Tensor& w : weights) {
    check_device(w, weights[0], op);
    STD_TORCH_CHECK(dtype_of(w, op) == dtype, "topk_mask: weights must share one dtype and device");
    check_fits(w, p);
  }
  const OnDevice device(weights[0]);
  const bool whole = p.kind == Pattern::unstructured || (p.kind == Pattern::block && p.first == 1 && p.second == 1);
  std::vector<Tensor> masks;
  std::vector<DeviceWeight> table;
  std::vector<PatternWeight> structured;
  for (Tensor& w : weights) {
    masks.push_back(torch::stable::new_empty(w, {(w.numel() + 7) / 8}, ScalarType::Byte));
    auto* bits = static_cast<uint8_t*>(masks.back().mutable_data_ptr());
    if (whole) {
      const Layout layout = layout_or_copy(&w);
      table.push_back({w.const_data_ptr(), bits, layout});
    } else {
      structured.push_back(weight_or_copy(&w, bits));
    }
  }
  const auto n = static_cast<int64_t>(weights.size());
  Tensor nan_count = torch::stable::new_empty(weights[0], {n}, ScalarType::Long);
  int64_t* nan = static_cast<int64_t*>(nan_count.mutable_data_ptr());
  if (p.fixed()) {
    const PatternCudaProblem problem{dtype, structured.data(), n, nan};
    Tensor scratch = device_bytes(weights[0], pattern_cuda_scratch_bytes(problem));
    check_launch(p.kind == Pattern::n_m ? n_m_mask_cuda(problem, p.first, p.second, aligned16(scratch), device.stream)
                                        : transposable_mask_cuda(problem, aligned16(scratch), device.stream),
                 op);
  } else if (whole) {
    auto problem = [&](int64_t t, int64_t each, int64_t k) { return TopkCudaProblem{dtype, table.data() + t, each, nan + t, k}; };
    run_budgets(table, keep, 1, weights[0], [&](int64_t t, int64_t each) { return topk_cuda_scratch_bytes(problem(t, each, 0)); },
                [&](int64_t t, int64_t each, int64_t k, void* scratch) { return topk_mask_cuda(problem(t, each, k), scratch, false, device.stream); });
  } else {
    const BlockShape block{p.first, p.second};
    auto problem = [&](int64_t t, int64_t each) { return PatternCudaProblem{dtype, structured.data() + t, each, nan + t}; };
    run_budgets(structured, keep, p.first * p.second, weights[0],
                [&](int64_t t, int64_t each) { return block_cuda_scratch_bytes(problem(t, each), block); },
                [&](int64_t t, int64_t each, int64_t k, void* scratch) { return block_mask_cuda(problem(t, each), block, k, scratch, false, device.stream); });
  }
  return {std::move(masks), std::move(nan_count)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, ACDC_DEVICE_KEY, m) { m.impl("topk_mask", TORCH_BOX(&topk_mask)); }

}  // namespace acdc
