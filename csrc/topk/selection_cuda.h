// Exact selection of the largest keys on a GPU, over anything that kernels can read item by item: tensors, or scores computed as they
// are read. Order, ties and the meaning of bits are topk.h's. For .cu files of this room; everything sits in an anonymous namespace.
//
// A Source is passed to kernels by value and has
//   using Key = U;                          an unsigned integer as wide as the floating type that is compared
//   struct Entry { uint8_t* bits;           where the bits of this entry's items go: device memory that begins on a multiple of 4 bytes
//                                           and is a multiple of 4 bytes long; (numel + 7) / 8 bytes are written
//                  int64_t numel;           at least 1
//                  int64_t first_item;      items of the entries before this one
//                  int64_t first_chunk;     their tiles: the sum of tiles_of(numel)
//                  int64_t* nan_count;      a counter to which NaN items are added; null: nobody asks
//                  ... };                   and whatever finds the items
//   const Entry* table; int64_t entries;    device memory; at least one entry
//   __device__ U magnitude(const Entry&, int64_t i) const           item i without its sign; any NaN as it is
//   __device__ const U* plain(const Entry&) const                   the items, if they lie as one on a multiple of 16 bytes; else null
//
// Launches: clear; with a bracket draw_sample, refine_sample, scan, place; narrow_threshold for each 12 bits of a key, write_larger,
// take_equal, which do nothing after a bracket that held. Bytes: one read of all items and one write of their bits, and 1% of the items
// written and read twice; without a bracket 2 reads more than key bits / 12, rounded up, the last of them of tiles with ties only.
#pragma once
#include <algorithm>
#include <cmath>

#include "topk/key_rule.h"
#include "topk/selection_bracket.h"
#include "topk/selection_radix.h"

namespace acdc {
namespace {

constexpr int64_t kBracketFrom = 65536;  // below this a bracket gains nothing
constexpr double kSigmas = 4.5;          // half width of the bracket; neighbours in a run of the sample resemble each other

struct SelectionRequest {
  DType dtype;           // of the keys
  int64_t numel, tiles;  // over all entries
  int64_t keep;          // in [0, numel]
  bool bracket;          // false: radix selection at once
  int64_t* nan_count;    // [nan_counters] in device memory, set to 0 first
  int64_t nan_counters;
  void* scratch;         // device memory, aligned to 16 bytes: selection_scratch_bytes
  int64_t room_bytes;    // of it for candidates: candidate_room_bytes, or less where memory is short
};

// From 2^29 items on it grows with their square: the bracket is then so narrow that one of its bins holds at most kListed candidates.
inline int64_t sample_size(int64_t numel) {
  const auto squared = static_cast<int64_t>(static_cast<double>(numel) * static_cast<double>(numel) * 0x1p-39);
  return std::clamp<int64_t>(numel / 48, 16384, std::clamp<int64_t>(squared, int64_t{1} << 18, int64_t{1} << 25)) / kRun * kRun;
}

// Room for the bracket's candidates and, before them, its sample. A large model's bracket holds 0.55% of its weights at 90%, 0.9% at
// 50%, with 8 bytes each for float32: some 1.1% and 1.8% of the bytes. A smaller model's holds more, up to 3.5% of the smallest's.
template <class U>
int64_t candidate_room_bytes(int64_t numel) {
  if (sizeof(U) == 2 || numel < kBracketFrom) return 0;
  const auto share = static_cast<int64_t>(0.0225 * static_cast<double>(numel) * sizeof(U)) + (int64_t{224} << 10);
  return std::max(share, sample_size(numel) * static_cast<int64_t>(sizeof(U))) / 16 * 16;
}

template <class U>
constexpr int64_t selection_scratch_bytes(int64_t room_bytes) {
  return (static_cast<int64_t>(sizeof(SelectionState<U>)) + 15) / 16 * 16 + room_bytes;
}

template <class U>
__global__ void clear(SelectionState<U>* state, TopkPath path, int64_t* nan_count, int64_t nan_counters) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, from = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t i = from; i < 2 * kBins; i += step) state->bins[i / kBins][i % kBins] = 0;
  for (int64_t i = from; i < nan_counters; i += step) nan_count[i] = 0;
  if (from != 0) return;
  state->path = static_cast<int>(path);
  state->ticket = state->listed = 0;
  state->greater = state->candidates = 0;
}

// `scratch` begins with the TopkPath that was taken, an int, once the stream has come past this.
template <class Source>
cudaError_t select_largest(const Source& source, const SelectionRequest& r, cudaStream_t stream) {
  using U = typename Source::Key;
  using State = SelectionState<U>;
  static_assert(std::is_trivially_copyable_v<Source>, "kernels take it by value");
  SelectionTask<U> task{};
  task.state = static_cast<State*>(r.scratch);
  task.nan = rule_for<U>(r.dtype).nan;
  task.numel = r.numel, task.tiles = r.tiles, task.keep = r.keep;
  const bool some = r.keep > 0 && r.keep < r.numel;
  const bool bracket = some && r.bracket && sizeof(U) > 2 && r.numel >= kBracketFrom && r.room_bytes >= 32768;
  auto clear_state = clear<U>;
  cudaError_t error = ACDC_LAUNCH(clear_state, grid_for(2 * kBins / kSelectThreads, 1), kSelectThreads, stream, task.state,
                                  bracket ? TopkPath::bracket_missed : TopkPath::radix, r.nan_count, r.nan_counters);
  const unsigned grid = static_cast<unsigned>(
      std::min<int64_t>(grid_for((r.tiles + kSelectWarps - 1) / kSelectWarps, kBlocks<U>), kSegments / kSelectWarps));
  if (!some) {
    auto all_or_none = fill<Source>;
    if (error == cudaSuccess) error = ACDC_LAUNCH(all_or_none, grid, kSelectThreads, stream, source, task);
    return error;
  }
  if constexpr (sizeof(U) > 2) {
    if (bracket) {
      const bool wide = r.tiles * kTile > int64_t{1} << kLowBits;
      char* room = static_cast<char*>(r.scratch) + selection_scratch_bytes<U>(0);
      task.capacity = r.room_bytes / static_cast<int64_t>(sizeof(U) + 4 + wide) / 4 * 4;
      task.keys = reinterpret_cast<U*>(room);
      task.at_low = reinterpret_cast<uint32_t*>(task.keys + task.capacity);
      task.at_high = wide ? reinterpret_cast<uint8_t*>(task.at_low + task.capacity) : nullptr;
      task.sampled = std::min(sample_size(r.numel), r.room_bytes / static_cast<int64_t>(sizeof(U)) / kRun * kRun);
      const double n = static_cast<double>(task.sampled), kept = static_cast<double>(r.keep) / static_cast<double>(r.numel);
      const double spread = kSigmas * std::sqrt(kept * (1 - kept) * n) + 2;
      task.upper = static_cast<int64_t>(kept * n - spread);
      task.lower = static_cast<int64_t>(kept * n + spread) + 1;
      const int64_t blocks = (task.sampled + kSelectThreads - 1) / kSelectThreads;
      auto draw = draw_sample<Source>;
      auto refine = refine_sample<U>;
      auto read = scan<Source>;
      auto finish = place<Source>;
      if (error == cudaSuccess) error = ACDC_LAUNCH(draw, grid_for(blocks, kSmallBlocks), kSelectThreads, stream, source, task);
      if (error == cudaSuccess) error = ACDC_LAUNCH(refine, grid_for(blocks, kSmallBlocks), kSelectThreads, stream, task);
      if (error == cudaSuccess) error = ACDC_LAUNCH(read, grid, kSelectThreads, stream, source, task);
      const unsigned enough = grid_for((task.capacity + kSelectThreads - 1) / kSelectThreads, 2);  // each block reads all bins
      if (error == cudaSuccess) error = ACDC_LAUNCH(finish, enough, kSelectThreads, stream, source, task);
    }
  }
  auto narrow = narrow_threshold<Source>;
  auto write = write_larger<Source>;
  auto take = take_equal<Source>;
  for (int width = kKeyBits<U>; width > 0 && error == cudaSuccess; width -= kBinBits)
    error = ACDC_LAUNCH(narrow, grid, kSelectThreads, stream, source, task, width == kKeyBits<U>);
  if (error == cudaSuccess) error = ACDC_LAUNCH(write, grid, kSelectThreads, stream, source, task, !bracket);
  if (error == cudaSuccess) error = ACDC_LAUNCH(take, grid, kSelectThreads, stream, source, task);
  return error;
}

}  // namespace
}  // namespace acdc
