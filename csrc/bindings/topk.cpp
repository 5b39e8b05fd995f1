#include "topk/topk.h"

#include <algorithm>
#include <tuple>

#include "bindings/convert.h"
#include "bindings/topk_pattern.h"
#include "topk/patterns.h"

namespace acdc {
namespace {

std::tuple<std::vector<Tensor>, Tensor> topk_mask(std::vector<Tensor> weights, std::vector<int64_t> keep, StringHandle pattern_handle) {
  const std::string pattern = take_string(pattern_handle);
  const Pattern p = parse(pattern);
  check_budgets(weights, keep, p);
  const DType dtype = dtype_of(weights[0], "topk_mask");
  const int n = static_cast<int>(weights.size());
  std::vector<TensorRef> refs;
  std::vector<uint8_t*> bits;
  std::vector<Tensor> masks;
  int64_t total = 0;
  for (const Tensor& w : weights) {
    STD_TORCH_CHECK(w.is_cpu() && dtype_of(w, "topk_mask") == dtype, "topk_mask: weights must share one dtype and device");
    check_fits(w, p);
    refs.push_back(ref(w));
    masks.push_back(torch::stable::new_empty(w, {(w.numel() + 7) / 8}, ScalarType::Byte));
    bits.push_back(static_cast<uint8_t*>(masks.back().mutable_data_ptr()));
    total += w.numel();
  }
  Tensor nan_count = torch::stable::new_empty(weights[0], {n}, ScalarType::Long);
  int64_t* nan = static_cast<int64_t*>(nan_count.mutable_data_ptr());
  const Pool threads = pool();
  if (p.fixed()) {
    const PatternProblem problem{dtype, refs.data(), bits.data(), nan, n};
    if (p.kind == Pattern::n_m)
      n_m_mask_cpu(problem, p.first, p.second, threads);
    else
      transposable_mask_cpu(problem, threads);
    return {std::move(masks), std::move(nan_count)};
  }
  const bool one_budget = keep.size() == 1;
  const BlockShape block{p.first, p.second};
  const int64_t unit = p.kind == Pattern::block ? p.first * p.second : 1;
  auto scratch_for = [&](int64_t numel) {
    return p.kind == Pattern::block ? block_scratch_bytes(dtype, numel, block, threads.threads)
                                    : topk_scratch_bytes(dtype, numel, threads.threads);
  };
  int64_t scratch_bytes = one_budget ? scratch_for(total) : 0;  // not monotone: few blocks are stored
  for (const TensorRef& t : refs) scratch_bytes = one_budget ? scratch_bytes : std::max(scratch_bytes, scratch_for(t.numel));
  Tensor scratch = torch::stable::new_empty(weights[0], {scratch_bytes + 64}, ScalarType::Byte);
  auto address = reinterpret_cast<uintptr_t>(scratch.mutable_data_ptr());
  void* aligned = reinterpret_cast<void*>((address + 63) / 64 * 64);
  for (int first = 0; first < n; first += one_budget ? n : 1) {
    const int count = one_budget ? n : 1;
    int64_t numel = 0;
    for (int t = first; t < first + count; ++t) numel += refs[t].numel;
    STD_TORCH_CHECK(keep[first] >= 0 && keep[first] <= numel && keep[first] % unit == 0, "topk_mask: keep must be in [0, ", numel,
                    "] and a multiple of ", unit, ", got ", keep[first]);
    if (p.kind == Pattern::block)
      block_mask_cpu({dtype, refs.data() + first, bits.data() + first, nan + first, count}, block, keep[first] / unit, aligned,
                     scratch_bytes, threads);
    else
      topk_mask_cpu({dtype, refs.data() + first, bits.data() + first, nan + first, count, keep[first]}, aligned, scratch_bytes, threads,
                    false);
  }
  return {std::move(masks), std::move(nan_count)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, CPU, m) { m.impl("topk_mask", TORCH_BOX(&topk_mask)); }

}  // namespace acdc
