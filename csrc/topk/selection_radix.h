// The radix selection: the threshold key from its first bits to its last, a pass over the items for kBinBits of them; then the bits of all
// keys above it, and those of the first keys equal to it. Its kernels return at once where the bracket did it all.
#pragma once
#include "topk/selection_pieces.h"

namespace acdc {
namespace {

template <class U>
__device__ inline bool is_done(const SelectionState<U>& s) {
  return s.path == static_cast<int>(TopkPath::bracket);
}

// Narrows s.where[0] by kBinBits; at first it holds all keys.
template <class Source>
__global__ void __launch_bounds__(kSelectThreads, kBlocks<typename Source::Key>) narrow_threshold(Source source, SelectionTask<typename Source::Key> task, bool at_first) {
  using U = typename Source::Key;
  struct Bins {
    unsigned of[kBins];
  };
  ACDC_SHARED(Bins, bins);
  SelectionState<U>& s = *task.state;
  if (is_done(s)) return;
  const KeyRange<U> where = at_first ? KeyRange<U>{0, kKeyBits<U>, task.keep} : s.where[0];
  const int shift = where.shift();
  for (unsigned b = threadIdx.x; b < kBins; b += kSelectThreads) bins.of[b] = 0;
  __syncthreads();
  unsigned bin = 0, pending = 0;  // equal neighbours are counted together: atomics on one address wait for each other
  Cursor<Source> cursor(source);
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kSelectWarps + threadIdx.x / 32; tile < task.tiles; tile += static_cast<int64_t>(gridDim.x) * kSelectWarps) {
    const int64_t first = cursor.move_to(tile);
    visit_tile(source, *cursor.entry, first, [&](U m, int) {
      const U in = static_cast<U>(smaller(m, task.nan) - where.base);
      if (in >> where.width != 0) return;
      const unsigned b = static_cast<unsigned>(in >> shift);
      if (b != bin) {
        if (pending) atomicAdd(&bins.of[bin], pending);
        bin = b;
        pending = 0;
      }
      ++pending;
    });
  }
  if (pending) atomicAdd(&bins.of[bin], pending);
  __syncthreads();
  for (unsigned b = threadIdx.x; b < kBins; b += kSelectThreads)
    if (bins.of[b]) atomicAdd(&s.bins[0][b], Count{bins.of[b]});
  if (!is_last_block(&s.ticket)) return;
  const KeyRange<U> next = narrowed(where, s.bins[0]);
  if (threadIdx.x == 0) s.where[0] = next;
  clear_bins(s.bins[0]);
}

// Sets all bits, or none, and counts NaNs.
template <class Source>
__global__ void __launch_bounds__(kSelectThreads, kBlocks<typename Source::Key>) fill(Source source, SelectionTask<typename Source::Key> task) {
  using U = typename Source::Key;
  const int lane = static_cast<int>(threadIdx.x & 31);
  Cursor<Source> cursor(source);
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kSelectWarps + threadIdx.x / 32; tile < task.tiles; tile += static_cast<int64_t>(gridDim.x) * kSelectWarps) {
    const int64_t first = cursor.move_to(tile);
    const auto& e = *cursor.entry;
    bool nan = false;
    visit_tile(source, e, first, [&](U m, int) { nan |= m >= task.nan; });
    const int64_t left = e.numel - first - 32 * lane;
    const uint32_t all = left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0;
    store_word(e, first, lane, task.keep > 0 ? all : 0);
    if (__any_sync(kAllLanes, nan)) count_nan(source, e, first, task.nan);
  }
}

// The tiles that a warp walks in order, the same ones in each kernel of one grid.
struct Segment {
  int64_t index, begin, end;
  __device__ explicit Segment(int64_t tiles) {
    const int64_t warps = static_cast<int64_t>(gridDim.x) * kSelectWarps, each = tiles / warps, more = tiles % warps;
    index = static_cast<int64_t>(blockIdx.x) * kSelectWarps + threadIdx.x / 32;
    begin = index * each + smaller(index, more);
    end = begin + each + (index < more);
  }
};

// Writes the bits of all keys above the threshold; how many are equal to it in the segments before each.
template <class Source>
__global__ void __launch_bounds__(kSelectThreads, kBlocks<typename Source::Key>) write_larger(Source source, SelectionTask<typename Source::Key> task, bool count_nans) {
  using U = typename Source::Key;
  SelectionState<U>& s = *task.state;
  if (is_done(s)) return;
  const U low = s.where[0].base, high = low >= task.nan ? kMagnitude<U> : low, range = static_cast<U>(high - low);  // NaNs share one key
  const Segment segment(task.tiles);
  Count equal = 0;
  Cursor<Source> cursor(source);
  for (int64_t tile = segment.begin; tile < segment.end; ++tile) {
    const int64_t first = cursor.move_to(tile);
    const auto& e = *cursor.entry;
    uint32_t above = 0, same = 0;
    bool nan = false;
    visit_tile(source, e, first, [&](U m, int bit) {
      above |= static_cast<uint32_t>(m > high) << bit;
      same |= static_cast<uint32_t>(static_cast<U>(m - low) <= range) << bit;
      nan |= m >= task.nan;
    });
    equal += static_cast<Count>(__popc(same));
    store_word(e, first, word_of_lane<U>(), to_words<U>(above));
    if (count_nans && __any_sync(kAllLanes, nan)) count_nan(source, e, first, task.nan);
  }
  for (int by = 16; by; by /= 2) equal += __shfl_xor_sync(kAllLanes, equal, by);
  if ((threadIdx.x & 31) == 0) s.segments[segment.index] = equal;
  if (!is_last_block(&s.ticket)) return;
  const int64_t segments = static_cast<int64_t>(gridDim.x) * kSelectWarps, mine = (segments + kSelectThreads - 1) / kSelectThreads;
  const int64_t from = smaller(mine * threadIdx.x, segments), to = smaller(from + mine, segments);
  Count sum = 0;
  for (int64_t i = from; i < to; ++i) sum += s.segments[i];
  Count before = sum_before(sum);
  for (int64_t i = from; i < to; ++i) {
    const Count n = s.segments[i];
    s.segments[i] = before;
    before += n;
  }
  if (threadIdx.x == kSelectThreads - 1) s.segments[segments] = before;
}

// Sets the bits of the first s.where[0].rank keys equal to the threshold. Its grid is write_larger's.
template <class Source>
__global__ void __launch_bounds__(kSelectThreads, kBlocks<typename Source::Key>) take_equal(Source source, SelectionTask<typename Source::Key> task) {
  using U = typename Source::Key;
  constexpr int n = kItems<U>, lanes = 32 / n;
  SelectionState<U>& s = *task.state;
  if (is_done(s)) return;
  const U threshold = s.where[0].base;
  const Segment segment(task.tiles);
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int64_t before = static_cast<int64_t>(s.segments[segment.index]), after = static_cast<int64_t>(s.segments[segment.index + 1]);
  int64_t left = smaller(s.where[0].rank, after) - before;
  Cursor<Source> cursor(source);
  for (int64_t tile = segment.begin; left > 0 && tile < segment.end; ++tile) {
    const int64_t first = cursor.move_to(tile);
    const auto& e = *cursor.entry;
    uint32_t same = 0;
    visit_tile(source, e, first, [&](U m, int bit) { same |= static_cast<uint32_t>(smaller(m, task.nan) == threshold) << bit; });
    uint32_t word = __shfl_sync(kAllLanes, to_words<U>(same), lane % n * lanes + lane / n);  // lane i now has word i
    int upto = __popc(word);
    for (int by = 1; by < 32; by *= 2) {
      const int other = __shfl_up_sync(kAllLanes, upto, static_cast<unsigned>(by));
      if (lane >= by) upto += other;
    }
    const int64_t mine = left - (upto - __popc(word));  // keys that this word may take
    left -= __shfl_sync(kAllLanes, upto, 31);
    uint32_t rest = word;  // what is left of the word once the first `mine` are gone
    for (int64_t i = 0; i < mine && rest != 0; ++i) rest &= rest - 1;
    word &= ~rest;
    if (word != 0) set_bits(e.bits, first + 32 * lane, word);
  }
}

}  // namespace
}  // namespace acdc
