// What the kernels of selection_cuda.h share: what they keep in device memory, how a warp reads a tile, the bin that holds a rank.
#pragma once
#include "common/cuda.h"
#include "common/table.h"
#include "topk/topk.h"

namespace acdc {
namespace {

using Count = unsigned long long;  // what CUDA's 64-bit atomics take

constexpr int64_t kTile = 1024;  // items that a warp reads at a time: 32 a lane, whose bits make a word a lane
constexpr int kBinBits = 12, kBins = 1 << kBinBits;
constexpr unsigned kSelectThreads = block_threads(256), kSelectWarps = kSelectThreads / 32;
constexpr int64_t kSegments = 8192;     // at most so many warps walk a part of their own of all tiles
constexpr unsigned kListed = 2048;      // candidates of one bin that are ranked against each other
#ifdef ACDC_CUDA_EMULATED
constexpr int kLowBits = 18;  // so that tests number items with more than these
#else
constexpr int kLowBits = 32;
#endif

constexpr int64_t tiles_of(int64_t numel) { return (numel + kTile - 1) / kTile; }

// Blocks on a multiprocessor of kernels that read tiles, with eight loads of 16 bytes in flight: 80 registers a thread, or 128.
template <class U> constexpr int kBlocks = sizeof(U) == 8 ? 2 : 3;
template <class U> constexpr int kKeyBits = sizeof(U) * 8 - 1;
template <class U> constexpr U kMagnitude = static_cast<U>(static_cast<U>(~U{0}) >> 1);
template <class U> constexpr int kItems = 16 / sizeof(U);  // of one load

// Where keys of one rank lie: the keys base + [0, 2^width), `rank` counted from the largest of them, from 1.
template <class U>
struct KeyRange {
  U base;
  int width;
  int64_t rank;
  __host__ __device__ int shift() const { return width > kBinBits ? width - kBinBits : 0; }
};

// An item by its number over all tiles, with its key.
template <class U>
struct Candidate {
  U key;
  int64_t at;
};

template <class U>
struct SelectionState {
  int path;  // TopkPath; `bracket` once all bits are written, and the kernels that come after return at once
  unsigned ticket, listed;
  U low, high;           // the bracket
  Count greater;         // keys above it
  Count candidates;      // keys in it, stored or not
  KeyRange<U> where[2];  // of the bracket's upper and lower end among the sample; [0] then of the threshold
  Count bins[2][kBins];  // all 0 between kernels, but for the candidates' in [0]
  Candidate<U> list[kListed];
  Count segments[kSegments + 1];
};

template <class U>
struct SelectionTask {
  SelectionState<U>* state;
  U nan;                           // every NaN's key; no key is larger
  int64_t numel, tiles, keep;
  int64_t sampled, upper, lower;   // the sample's keys; ranks among them of the bracket's ends, outside [1, sampled] where it has none
  int64_t capacity;                // candidates that there is room for
  U* keys;                         // [capacity]; the sample before
  uint32_t* at_low;                // [capacity]; kLowBits of an item's number
  uint8_t* at_high;                // [capacity], the rest; null where kLowBits number all items
};

template <class U>
__device__ inline U smaller(U a, U b) {
  return a < b ? a : b;
}

// The sum of `mine` over the threads before this one. The whole block meets here.
__device__ inline Count sum_before(Count mine) {
  struct Sums {
    Count of[kSelectWarps];
  };
  ACDC_SHARED(Sums, sums);
  const unsigned lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  Count before = mine;
  for (unsigned by = 1; by < 32; by *= 2) {
    const Count other = __shfl_up_sync(kAllLanes, before, by);
    if (lane >= by) before += other;
  }
  __syncthreads();  // who still reads what the last call left
  if (lane == 31) sums.of[warp] = before;
  __syncthreads();
  before -= mine;
  for (unsigned w = 0; w < warp; ++w) before += sums.of[w];
  return before;
}

struct Bin {
  int index;
  int64_t rank;  // among the keys of the bin
};

// The bin that holds the key of a rank in [1, sum of counts], counted from the last bin. The whole block meets here.
__device__ inline Bin find_bin(const Count* counts, int64_t rank) {
  ACDC_SHARED(Bin, found);
  constexpr int kMine = kBins / static_cast<int>(kSelectThreads);
  const int last = kBins - 1 - static_cast<int>(threadIdx.x) * kMine;
  Count mine = 0;
  for (int b = last; b > last - kMine; --b) mine += counts[b];
  int64_t left = rank - static_cast<int64_t>(sum_before(mine));
  if (left > 0 && left <= static_cast<int64_t>(mine)) {
    int b = last;
    for (; left > static_cast<int64_t>(counts[b]); --b) left -= static_cast<int64_t>(counts[b]);
    found = {b, left};
  }
  __syncthreads();
  const Bin bin = found;
  __syncthreads();
  return bin;
}

template <class U>
__device__ inline KeyRange<U> narrowed(const KeyRange<U>& where, const Count* counts) {
  const Bin bin = find_bin(counts, where.rank);
  return {static_cast<U>(where.base + (static_cast<U>(bin.index) << where.shift())), where.shift(), bin.rank};
}

__device__ inline void clear_bins(Count* bins) {
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += static_cast<int>(kSelectThreads)) bins[b] = 0;
}

// Whether all other blocks have been here: the last one sees what they wrote, and leaves the ticket as it was.
__device__ inline bool is_last_block(unsigned* ticket) {
  ACDC_SHARED(bool, last);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    if (last) *ticket = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// The entry of one tile after another, most of which are the same.
template <class Source>
struct Cursor {
  const Source& source;
  const typename Source::Entry* entry = nullptr;
  int64_t first = 0, end = 0;  // its tiles
  __device__ explicit Cursor(const Source& s) : source(s) {}
  // Of the item that the tile starts with, the position in its entry.
  __device__ int64_t move_to(int64_t tile) {
    if (tile < first || tile >= end) {
      entry = source.table + find_entry(source.table, source.entries, tile);
      first = entry->first_chunk;
      end = first + tiles_of(entry->numel);
    }
    return (tile - first) * kTile;
  }
};

// Which item of a tile has bit `bit` of this lane, in a lane's own order: neighbours are loaded together.
template <class U>
__device__ inline int item_of(int bit) {
  constexpr int n = kItems<U>;
  return bit / n * 32 * n + static_cast<int>(threadIdx.x & 31) * n + bit % n;
}

template <class U>
__device__ inline U item(const Bytes16& v, int k) {
  if constexpr (sizeof(U) == 8)
    return v.word[2 * k] | static_cast<U>(v.word[2 * k + 1]) << 32;
  else if constexpr (sizeof(U) == 4)
    return v.word[k];
  else
    return static_cast<U>(v.word[k / 2] >> (16 * (k % 2)));
}

// f(magnitude, bit) for all of this lane's items of the tile that starts at item `first` of the entry.
template <class Source, class F>
__device__ inline void visit_tile(const Source& source, const typename Source::Entry& e, int64_t first, const F& f) {
  using U = typename Source::Key;
  constexpr int n = kItems<U>, loads = 32 / n, together = loads < 8 ? loads : 8;
  const U* plain = source.plain(e);
  if (plain != nullptr && e.numel - first >= kTile) {
    const Bytes16* from = reinterpret_cast<const Bytes16*>(plain + first) + (threadIdx.x & 31);
    ACDC_UNROLLED
    for (int done = 0; done < loads; done += together) {
      Bytes16 v[together];
      ACDC_UNROLLED
      for (int j = 0; j < together; ++j) v[j] = load16(from + (done + j) * 32);
      ACDC_UNROLLED
      for (int i = 0; i < together * n; ++i) f(static_cast<U>(item<U>(v[i / n], i % n) & kMagnitude<U>), done * n + i);
    }
    return;
  }
  ACDC_ROLLED
  for (int bit = 0; bit < 32; ++bit) {
    const int64_t i = first + item_of<U>(bit);
    if (i < e.numel) f(source.magnitude(e, i), bit);
  }
}

// Which of the tile's 32 words of bits this lane has after to_words.
template <class U>
__device__ inline int word_of_lane() {
  constexpr int n = kItems<U>, lanes = 32 / n;
  const int lane = static_cast<int>(threadIdx.x & 31);
  return lane % lanes * n + lane / lanes;
}

// From bits in the lanes' own order to words in the items': lanes transpose fields of kItems bits among the 32 / kItems of them whose
// loads make up the same words.
template <class U>
__device__ inline uint32_t to_words(uint32_t bits) {
  constexpr int n = kItems<U>;
  ACDC_UNROLLED
  for (int by = 16; by >= n; by /= 2) {
    const uint32_t lower = by == 16 ? 0x0000ffffu : by == 8 ? 0x00ff00ffu : by == 4 ? 0x0f0f0f0fu : 0x33333333u;
    const uint32_t other = __shfl_xor_sync(kAllLanes, bits, by / n);
    bits = threadIdx.x & (by / n) ? (bits & ~lower) | (other & ~lower) >> by : (bits & lower) | (other & lower) << by;
  }
  return bits;
}

// Stores word `w` of the tile that starts at item `first`; a mask's last bytes one by one, for the memory behind them may be someone else's.
template <class Entry>
__device__ inline void store_word(const Entry& e, int64_t first, int w, uint32_t word) {
  if (e.numel - first >= kTile) {
    reinterpret_cast<uint32_t*>(e.bits)[first / 32 + w] = word;
    return;
  }
  const int64_t byte = first / 8 + 4 * w;
  for (int j = 0; j < 4 && byte + j < (e.numel + 7) / 8; ++j) e.bits[byte + j] = static_cast<uint8_t>(word >> (8 * j));
}

// Adds a tile's NaNs to their counter. NaNs are rare: nothing that the usual pass had to keep.
template <class Source>
__device__ inline void count_nan(const Source& source, const typename Source::Entry& e, int64_t first, typename Source::Key nan) {
  unsigned count = 0;
  ACDC_ROLLED
  for (int bit = 0; bit < 32; ++bit) {
    const int64_t i = first + item_of<typename Source::Key>(bit);
    if (i < e.numel && source.magnitude(e, i) >= nan) ++count;
  }
  count = __reduce_add_sync(kAllLanes, count);
  if ((threadIdx.x & 31) == 0 && e.nan_count != nullptr) atomicAdd(reinterpret_cast<Count*>(e.nan_count), Count{count});
}

}  // namespace
}  // namespace acdc
