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

// U only carries bits of the element's width: the loop knows the type.
template <class U>
void strided_chunk(const SgdTensor& t, const Chunk& c, const SgdHyper& hyper, SgdRow loop) {
  U param[kBlock], grad[kBlock], momentum[kBlock];
  for (int64_t at = 0; at < c.count; at += kBlock) {
    const int64_t n = c.count - at < kBlock ? c.count - at : kBlock, begin = c.begin + at;
    U* p = row(t.param, begin, n, param);
    U* b = row(t.momentum, begin, n, momentum);
    loop(p, row(t.grad, begin, n, grad), b, t.bits ? t.bits + begin / 8 : nullptr, n, hyper);
    if (p == param) scatter(t.param, begin, n, param);
    if (b == momentum) scatter(t.momentum, begin, n, momentum);
  }
}

void one_chunk(const SgdTensor& t, const Chunk& c, const SgdHyper& hyper, SgdRow loop) {
  const int64_t bytes = element_bytes(t.dtype);
  if (t.param.contiguous && t.grad.contiguous && (t.momentum.data == nullptr || t.momentum.contiguous)) {
    auto at = [&](const TensorRef& r) { return r.data ? static_cast<char*>(r.data) + c.begin * bytes : nullptr; };
    loop(at(t.param), at(t.grad), at(t.momentum), t.bits ? t.bits + c.begin / 8 : nullptr, c.count, hyper);
  } else if (bytes == 8) {
    strided_chunk<uint64_t>(t, c, hyper, loop);
  } else if (bytes == 4) {
    strided_chunk<uint32_t>(t, c, hyper, loop);
  } else {
    strided_chunk<uint16_t>(t, c, hyper, loop);
  }
}

}  // namespace

void masked_sgd_cpu(const SgdTensor* tensors, int count, const SgdHyper& hyper, const Pool& all) {
  int64_t numel = 0;
  for (int t = 0; t < count; ++t) numel += tensors[t].param.numel;
  const Pool pool = all.for_elements(numel);
  const std::vector<Chunk> chunks = make_chunks(count, [&](int t) { return tensors[t].param.numel; }, kChunk);
  const MaskedUpdateKernels& kernels = masked_update_kernels();
  for_each_item(pool, static_cast<int64_t>(chunks.size()), [&](int, int64_t i) {
    const SgdTensor& t = tensors[chunks[i].tensor];
    one_chunk(t, chunks[i], hyper, kernels.sgd[static_cast<int>(t.dtype)]);
  });
}

}  // namespace acdc
