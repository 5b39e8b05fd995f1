#include "common/isa.h"
#include "topk/selection.h"

namespace acdc {

ACDC_SELECT_ISA(TopkKernels, topk_kernels)

namespace {

constexpr int64_t kBlock = 4096;  // elements of a strided tensor gathered at a time

template <class U>
class Tensors {
 public:
  static constexpr int64_t kBracketFrom = 262144;  // below this a radix selection stays in cache and is quicker

  explicit Tensors(const TopkProblem& problem) : problem_(problem) {}
  int tensors() const { return problem_.tensors; }
  int64_t numel(int t) const { return problem_.weights[t].numel; }
  int64_t work() const {
    int64_t numel = 0;
    for (int t = 0; t < problem_.tensors; ++t) numel += problem_.weights[t].numel;
    return numel;
  }

  // A strided chunk is read in blocks gathered on the stack.
  template <class F>
  void blocks(const Chunk& c, const F& f) const {
    const TensorRef& t = problem_.weights[c.tensor];
    if (t.contiguous) {
      f(static_cast<const U*>(t.data) + c.begin, c.count, 0);
      return;
    }
    U block[kBlock];
    for (int64_t at = 0; at < c.count; at += kBlock) {
      int64_t n = std::min<int64_t>(kBlock, c.count - at);
      gather(t, c.begin + at, n, block);
      f(static_cast<const U*>(block), n, at);
    }
  }

  void copy(int t, int64_t begin, int64_t count, U* out) const {
    const TensorRef& w = problem_.weights[t];
    if (w.contiguous)
      std::memcpy(out, static_cast<const U*>(w.data) + begin, static_cast<size_t>(count) * sizeof(U));
    else
      gather(w, begin, count, out);
  }

  void prefetch(int t, int64_t begin) const {
    const TensorRef& w = problem_.weights[t];
    if (w.contiguous) __builtin_prefetch(static_cast<const U*>(w.data) + begin);
  }

 private:
  const TopkProblem& problem_;
};

template <class U>
int64_t scratch_for(int64_t numel, int threads) {
  int64_t bytes = histogram_bytes<U>(threads);
  if (sizeof(U) > 2 && numel >= Tensors<U>::kBracketFrom)
    bytes += std::max<int64_t>(sample_size(numel) * sizeof(U), candidate_bytes<U>(numel * sizeof(U)));
  return bytes;
}

template <class U>
TopkPath select(const TopkProblem& p, void* scratch, int64_t scratch_bytes, const Pool& pool, bool force_radix) {
  Tensors<U> source(p);
  return Selection<U, Tensors<U>>(source, p.dtype, p.keep, p.bits, p.nan_count, scratch, scratch_bytes, pool).run(force_radix);
}

}  // namespace

int64_t topk_scratch_bytes(DType dtype, int64_t numel, int threads) {
  switch (element_bytes(dtype)) {
    case 8: return scratch_for<uint64_t>(numel, threads);
    case 4: return scratch_for<uint32_t>(numel, threads);
    default: return scratch_for<uint16_t>(numel, threads);
  }
}

TopkPath topk_mask_cpu(const TopkProblem& problem, void* scratch, int64_t scratch_bytes, const Pool& pool, bool force_radix) {
  switch (element_bytes(problem.dtype)) {
    case 8: return select<uint64_t>(problem, scratch, scratch_bytes, pool, force_radix);
    case 4: return select<uint32_t>(problem, scratch, scratch_bytes, pool, force_radix);
    default: return select<uint16_t>(problem, scratch, scratch_bytes, pool, force_radix);
  }
}

}  // namespace acdc
