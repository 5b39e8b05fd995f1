#include <cmath>
#include <vector>

#include "common/chunks.h"
#include "common/isa.h"
#include "masked_update/masked_update_kernels.h"

namespace acdc {

ACDC_SELECT_ISA(MaskedUpdateKernels, masked_update_kernels)

namespace {

constexpr int32_t kChunk = 32768;  // elements a work item
constexpr int64_t kBlock = 2048;   // elements of a strided tensor gathered at a time

// A row of a strided tensor, gathered into a buffer; a contiguous one is used in place.
template <class U>
U* row(const TensorRef& t, int64_t begin, int64_t n, U* buffer) {
  if (t.data == nullptr) return nullptr;
  if (t.contiguous) return static_cast<U*>(t.data) + begin;
  gather(t, begin, n, buffer);
  return buffer;
}

// U and W only carry bits of the widths of parameter and state: the loop knows the types.
template <class U, class W, class Scalars>
void strided_chunk(const UpdateTensor& t, const Chunk& c, const Scalars& scalars, UpdateLoop<Scalars> loop) {
  U param[kBlock], grad[kBlock];
  W states[kMaxStates][kBlock];
  for (int64_t at = 0; at < c.count; at += kBlock) {
    const int64_t n = c.count - at < kBlock ? c.count - at : kBlock, begin = c.begin + at;
    UpdateRows rows{row(t.param, begin, n, param), row(t.grad, begin, n, grad), {}};
    for (int k = 0; k < kMaxStates; ++k) rows.states[k] = row(t.states[k], begin, n, states[k]);
    loop(rows, t.bits ? t.bits + begin / 8 : nullptr, n, scalars);
    if (rows.param == param) scatter(t.param, begin, n, param);
    for (int k = 0; k < kMaxStates; ++k)
      if (rows.states[k] == states[k]) scatter(t.states[k], begin, n, states[k]);
  }
}

bool all_contiguous(const UpdateTensor& t) {
  for (const TensorRef& state : t.states)
    if (state.data && !state.contiguous) return false;
  return t.param.contiguous && t.grad.contiguous;
}

template <class Scalars>
void one_chunk(const UpdateTensor& t, const Chunk& c, const Scalars& scalars, UpdateLoop<Scalars> loop) {
  const int64_t bytes = element_bytes(t.dtype), state_bytes = element_bytes(t.state_dtype);
  if (all_contiguous(t)) {
    auto at = [&](const TensorRef& r, int64_t size) { return r.data ? static_cast<char*>(r.data) + c.begin * size : nullptr; };
    UpdateRows rows{at(t.param, bytes), at(t.grad, bytes), {}};
    for (int k = 0; k < kMaxStates; ++k) rows.states[k] = at(t.states[k], state_bytes);
    loop(rows, t.bits ? t.bits + c.begin / 8 : nullptr, c.count, scalars);
  } else if (bytes == 8) {
    strided_chunk<uint64_t, uint64_t>(t, c, scalars, loop);
  } else if (bytes == 4) {
    strided_chunk<uint32_t, uint32_t>(t, c, scalars, loop);
  } else if (state_bytes == 4) {
    strided_chunk<uint16_t, uint32_t>(t, c, scalars, loop);
  } else {
    strided_chunk<uint16_t, uint16_t>(t, c, scalars, loop);
  }
}

// scalars_of(t) are those of tensor t.
template <class Scalars, class ScalarsOf>
void update(const UpdateTensor* tensors, int count, const UpdateLoop<Scalars> (&loops)[kUpdateTypes], const ScalarsOf& scalars_of,
            const Pool& all) {
  int64_t numel = 0;
  for (int t = 0; t < count; ++t) numel += tensors[t].param.numel;
  const Pool pool = all.for_elements(numel);
  const std::vector<Chunk> chunks = make_chunks(count, [&](int t) { return tensors[t].param.numel; }, kChunk);
  for_each_item(pool, static_cast<int64_t>(chunks.size()), [&](int, int64_t i) {
    const UpdateTensor& t = tensors[chunks[i].tensor];
    one_chunk<Scalars>(t, chunks[i], scalars_of(chunks[i].tensor), loops[update_types(t.dtype, t.state_dtype)]);
  });
}

}  // namespace

void masked_sgd_cpu(const UpdateTensor* tensors, int count, const SgdHyper& hyper, const Pool& pool) {
  update(tensors, count, masked_update_kernels().sgd, [&](int) -> const SgdHyper& { return hyper; }, pool);
}

void masked_adamw_cpu(const UpdateTensor* tensors, float* const* steps, int count, const AdamWHyper& h, const Pool& pool) {
  std::vector<AdamWScalars> scalars;
  scalars.reserve(static_cast<size_t>(count));
  for (int t = 0; t < count; ++t) {
    const double step = *steps[t] += 1;
    const double correction1 = 1 - std::pow(h.beta1, step), correction2 = 1 - std::pow(h.beta2, step);
    scalars.push_back({1 - h.lr * h.weight_decay, h.beta1, h.beta2, h.eps, -(h.lr / correction1), std::pow(correction2, 0.5),
                       h.grad_scale, h.amsgrad, h.maximize});
  }
  update(tensors, count, masked_update_kernels().adamw, [&](int t) -> const AdamWScalars& { return scalars[static_cast<size_t>(t)]; }, pool);
}

}  // namespace acdc
