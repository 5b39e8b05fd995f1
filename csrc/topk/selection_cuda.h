// Exact selection of the largest keys on a GPU, over anything that kernels can read item by item: tensors, or scores computed as they
// are read. Order, ties and the meaning of bits are topk.h's. For .cu files of this room; everything sits in an anonymous namespace.
//
// A Source is passed to kernels by value and has
//   using Key = U;                          an unsigned integer as wide as the floating type that is compared
//   struct Entry { uint8_t* bits;           where the bits of this entry's items go: device memory, on a multiple of 4 bytes, and a
//                                           multiple of 4 bytes long, all (numel + 7) / 8 bytes written
//                  int64_t numel;           at least 1
//                  int64_t first_item;      items of the entries before this one
//                  int64_t first_chunk;     their tiles: see tiles_of
//                  int64_t* nan_count;      one counter, to which NaN items are added; null: nobody asks
//                  ... };                   and whatever finds its items
//   const Entry* table; int64_t entries;    device memory; at least one entry
//   __device__ U magnitude(const Entry&, int64_t i) const           item i without its sign; any NaN as it is
//   __device__ const U* plain(const Entry&) const                   the items, if they lie as one on a multiple of 16 bytes; else null
#pragma once
#include "common/cuda.h"
#include "common/dtype.h"
#include "topk/topk.h"

namespace acdc {
namespace {

constexpr int64_t kTile = 1024;  // items that a warp reads at a time: 32 a lane, whose bits make a word a lane

constexpr int64_t tiles_of(int64_t numel) { return (numel + kTile - 1) / kTile; }

struct SelectionRequest {
  int64_t numel, tiles;      // over all entries
  int64_t keep;              // in [0, numel]
  int64_t nan_counters;      // from `nan_count` on, so many are set to 0 first
  int64_t* nan_count;        // device memory; may be null
  bool bracket;              // false: radix selection at once
  void* scratch;             // device memory, aligned to 16 bytes
  int64_t room_bytes;        // of it for the bracket's candidates: candidate_room_bytes, or less where there is less
};

// Bytes of scratch for `room_bytes` of candidates; 0 where no bracket is asked for.
template <class U> int64_t selection_scratch_bytes(int64_t room_bytes);
// Room for the candidates among `numel` items, 2.25% of their bytes + 32 KiB; 0 where the radix selection is quicker.
template <class U> int64_t candidate_room_bytes(int64_t numel);
// `scratch` begins with the TopkPath that was taken, an int, once the stream has come past it.
template <class Source> cudaError_t select_largest(const Source& source, DType dtype, const SelectionRequest& request, cudaStream_t stream);

}  // namespace
}  // namespace acdc
