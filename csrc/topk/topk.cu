#include <vector>

#include "common/upload.h"
#include "topk/selection_cuda.h"
#include "topk/topk_cuda.h"

namespace acdc {
namespace {

constexpr int64_t kPlain = -1, kUnaligned = -2;  // instead of a layout: contiguous, on a multiple of 16 bytes or not

struct TensorEntry {
  uint8_t* bits;
  int64_t numel, first_item, first_chunk;
  int64_t* nan_count;
  const void* data;
  int64_t layout;  // its number among the layouts
};

template <class U>
struct Tensors {
  using Key = U;
  using Entry = TensorEntry;
  const Entry* table;
  int64_t entries;
  const Layout* layouts;
  __device__ U magnitude(const Entry& e, int64_t i) const {
    return static_cast<U>(static_cast<const U*>(e.data)[e.layout < 0 ? i : offset_of(layouts[e.layout], i)] & kMagnitude<U>);
  }
  __device__ const U* plain(const Entry& e) const { return e.layout == kPlain ? static_cast<const U*>(e.data) : nullptr; }
};

struct Tables {
  std::vector<TensorEntry> entries;
  std::vector<Layout> layouts;
  int64_t numel = 0, tiles = 0;
  int64_t entry_bytes() const { return (static_cast<int64_t>(entries.size() * sizeof(TensorEntry)) + 15) / 16 * 16; }
  int64_t bytes() const { return entry_bytes() + static_cast<int64_t>(layouts.size() * sizeof(Layout)); }
};

Tables tables_of(const TopkCudaProblem& p) {
  Tables t;
  for (int64_t i = 0; i < p.tensors; ++i) {
    const DeviceWeight& w = p.weights[i];
    const int64_t numel = w.layout.numel;
    if (numel == 0) continue;
    int64_t layout = is_aligned16(w.data) ? kPlain : kUnaligned;
    if (w.layout.dims > 0) {
      layout = static_cast<int64_t>(t.layouts.size());
      t.layouts.push_back(w.layout);
    }
    t.entries.push_back({w.bits, numel, t.numel, t.tiles, p.nan_count + i, w.data, layout});
    t.numel += numel;
    t.tiles += tiles_of(numel);
  }
  return t;
}

template <class U>
int64_t scratch_for(const Tables& t) {
  return selection_scratch_bytes<U>(candidate_room_bytes<U>(t.numel)) + t.bytes();
}

template <class U>
cudaError_t select(const TopkCudaProblem& p, const Tables& t, void* scratch, bool force_radix, cudaStream_t stream) {
  const int64_t room_bytes = candidate_room_bytes<U>(t.numel);
  char* table = static_cast<char*>(scratch) + selection_scratch_bytes<U>(room_bytes);
  char* layouts = table + t.entry_bytes();
  const Tensors<U> source{reinterpret_cast<const TensorEntry*>(table), static_cast<int64_t>(t.entries.size()),
                          reinterpret_cast<const Layout*>(layouts)};
  cudaError_t error = upload(t.entries.data(), source.entries, table, stream);
  if (error == cudaSuccess) error = upload(t.layouts.data(), static_cast<int64_t>(t.layouts.size()), layouts, stream);
  if (error != cudaSuccess) return error;
  return select_largest(source, {p.dtype, t.numel, t.tiles, p.keep, !force_radix, p.nan_count, p.tensors, scratch, room_bytes}, stream);
}

}  // namespace

int64_t topk_cuda_scratch_bytes(const TopkCudaProblem& problem) {
  const Tables t = tables_of(problem);
  switch (element_bytes(problem.dtype)) {
    case 8: return scratch_for<uint64_t>(t);
    case 4: return scratch_for<uint32_t>(t);
    default: return scratch_for<uint16_t>(t);
  }
}

cudaError_t topk_mask_cuda(const TopkCudaProblem& problem, void* scratch, bool force_radix, cudaStream_t stream) {
  const Tables t = tables_of(problem);
  switch (element_bytes(problem.dtype)) {
    case 8: return select<uint64_t>(problem, t, scratch, force_radix, stream);
    case 4: return select<uint32_t>(problem, t, scratch, force_radix, stream);
    default: return select<uint16_t>(problem, t, scratch, force_radix, stream);
  }
}

}  // namespace acdc
