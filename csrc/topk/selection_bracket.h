// The bracket: a sample's [low, high], one pass that writes the bits of all keys above it and stores those in it, and an exact selection
// among these. Blocks store candidates in whatever order they come; what is then done with them depends on the set alone.
#pragma once
#include "topk/selection_pieces.h"

namespace acdc {
namespace {

constexpr int64_t kRun = 8;   // neighbours drawn together: a sector of float32
constexpr int kStage = 128;   // candidates that a warp keeps before it stores them, with one atomic for all
constexpr int kSmallBlocks = 4;  // blocks on a multiprocessor of the other kernels

// The same of draw_sample; fewer where an item takes more registers to read.
template <class Source> constexpr int kSampleBlocks = kSmallBlocks;

struct SampleBins {
  unsigned of[kBins];
};

// The last entry with first_item <= item.
template <class Entry>
__device__ inline const Entry& entry_of_item(const Entry* table, int64_t entries, int64_t item) {
  int64_t low = 0, high = entries;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (table[middle].first_item <= item ? low : high) = middle;
  }
  return table[low];
}

__device__ inline void clear(SampleBins& bins) {
  for (unsigned b = threadIdx.x; b < kBins; b += kSelectThreads) bins.of[b] = 0;
}

__device__ inline void add(const SampleBins& bins, Count* to) {
  for (unsigned b = threadIdx.x; b < kBins; b += kSelectThreads)
    if (bins.of[b]) atomicAdd(to + b, Count{bins.of[b]});
}

// Runs spread evenly, each at a pseudo-random place of its stretch; counts the keys' first bits and narrows both ends of the bracket.
template <class Source>
__global__ void __launch_bounds__(kSelectThreads, kSampleBlocks<Source>) draw_sample(Source source, SelectionTask<typename Source::Key> task) {
  using U = typename Source::Key;
  ACDC_SHARED(SampleBins, bins);
  clear(bins);
  __syncthreads();
  constexpr int shift = kKeyBits<U> - kBinBits;
  const double stretch = static_cast<double>(task.numel) / static_cast<double>(task.sampled / kRun);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x; i < task.sampled; i += static_cast<int64_t>(gridDim.x) * kSelectThreads) {
    const int64_t run = i / kRun;
    const double jitter = static_cast<double>(static_cast<uint32_t>(run) * 2654435761u) * 0x1p-32;
    const int64_t at = smaller(static_cast<int64_t>((static_cast<double>(run) + jitter) * stretch), task.numel - 1);
    const auto& e = entry_of_item(source.table, source.entries, at);
    const int64_t begin = smaller((at - e.first_item) & ~(kRun - 1), e.numel > kRun ? e.numel - kRun : 0);
    const int64_t index = begin + i % kRun;
    const U key = smaller(source.magnitude(e, index < e.numel ? index : index % e.numel), task.nan);  // tiny tensors repeat
    task.keys[i] = key;
    atomicAdd(&bins.of[key >> shift], 1u);
  }
  __syncthreads();
  SelectionState<U>& s = *task.state;
  add(bins, s.bins[0]);
  if (!is_last_block(&s.ticket)) return;
  const KeyRange<U> upper = narrowed(KeyRange<U>{0, kKeyBits<U>, task.upper < 1 ? 1 : task.upper}, s.bins[0]);
  const KeyRange<U> lower = narrowed(KeyRange<U>{0, kKeyBits<U>, smaller(task.lower, task.sampled)}, s.bins[0]);
  if (threadIdx.x == 0) s.where[0] = upper, s.where[1] = lower;
  clear_bins(s.bins[0]);
}

// The same with the keys' next bits: 24 are close enough.
template <class U>
__global__ void __launch_bounds__(kSelectThreads, kSmallBlocks) refine_sample(SelectionTask<U> task) {
  struct Ends {
    SampleBins of[2];
  };
  ACDC_SHARED(Ends, bins);
  SelectionState<U>& s = *task.state;
  const KeyRange<U> upper = s.where[0], lower = s.where[1];
  for (SampleBins& each : bins.of) clear(each);
  __syncthreads();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x; i < task.sampled; i += static_cast<int64_t>(gridDim.x) * kSelectThreads) {
    const U up = task.keys[i] - upper.base, down = task.keys[i] - lower.base;
    if (up >> upper.width == 0) atomicAdd(&bins.of[0].of[up >> upper.shift()], 1u);
    if (down >> lower.width == 0) atomicAdd(&bins.of[1].of[down >> lower.shift()], 1u);
  }
  __syncthreads();
  for (int end = 0; end < 2; ++end) add(bins.of[end], s.bins[end]);
  if (!is_last_block(&s.ticket)) return;
  const KeyRange<U> high = narrowed(upper, s.bins[0]), low = narrowed(lower, s.bins[1]);
  if (threadIdx.x == 0) {
    s.high = task.upper < 1 ? task.nan : smaller(static_cast<U>(high.base + ((U{1} << high.width) - 1)), task.nan);
    s.low = task.lower > task.sampled ? 0 : low.base;
  }
  for (Count* each : s.bins) clear_bins(each);
}

// Candidates are counted in bins (key - low) >> bin_shift.
template <class U>
__device__ inline int bin_shift(const SelectionState<U>& s) {
  const int width = 64 - __clzll(static_cast<long long>(s.high - s.low));
  return width > kBinBits ? width - kBinBits : 0;
}

template <class U>
struct Stage {
  Candidate<U> of[kStage];
};

// Stores a warp's candidates, and counts them; false if they no longer fit.
template <class U>
__device__ inline bool store_candidates(const SelectionTask<U>& task, const Stage<U>& stage, int count, U low, int shift) {
  __syncwarp();
  const int lane = static_cast<int>(threadIdx.x & 31);
  Count first = 0;
  if (lane == 0) first = atomicAdd(&task.state->candidates, static_cast<Count>(count));
  first = __shfl_sync(kAllLanes, first, 0);
  const bool fit = static_cast<int64_t>(first) + count <= task.capacity;
  for (int i = lane; fit && i - lane < count; i += 32) {
    const bool there = i < count;
    unsigned bin = 0;
    if (there) {
      const Candidate<U> c = stage.of[i];
      const int64_t to = static_cast<int64_t>(first) + i;
      task.keys[to] = c.key;
      task.at_low[to] = static_cast<uint32_t>(c.at & ((int64_t{1} << kLowBits) - 1));
      if (task.at_high != nullptr) task.at_high[to] = static_cast<uint8_t>(c.at >> kLowBits);
      bin = static_cast<unsigned>((c.key - low) >> shift);
    }
    // One lane adds for all whose bin is the first one's: ties would wait for one another.
    const unsigned first_bin = __shfl_sync(kAllLanes, bin, 0), same = __ballot_sync(kAllLanes, there && bin == first_bin);
    if (lane == 0)
      atomicAdd(&task.state->bins[0][bin], static_cast<Count>(__popc(same)));
    else if (there && !(same >> lane & 1))
      atomicAdd(&task.state->bins[0][bin], Count{1});
  }
  __syncwarp();
  return fit;
}

// The one pass: words of bits of keys above the bracket, candidates, how many are greater, NaNs.
template <class Source>
__global__ void __launch_bounds__(kSelectThreads, kBlocks<typename Source::Key>) scan(Source source, SelectionTask<typename Source::Key> task) {
  using U = typename Source::Key;
  struct Stages {
    Stage<U> of[kSelectWarps];
  };
  ACDC_SHARED(Stages, stages);
  ACDC_SHARED(Count, block_greater);
  SelectionState<U>& s = *task.state;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  Stage<U>& stage = stages.of[warp];
  if (threadIdx.x == 0) block_greater = 0;
  __syncthreads();
  const U low = s.low, high = s.high >= task.nan ? kMagnitude<U> : s.high, range = static_cast<U>(high - low);  // NaNs share one key
  const int shift = bin_shift(s);
  Count greater = 0;
  int staged = 0;
  bool fit = true;
  Cursor<Source> cursor(source);
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kSelectWarps + warp; tile < task.tiles; tile += static_cast<int64_t>(gridDim.x) * kSelectWarps) {
    const int64_t first = cursor.move_to(tile);
    const auto& e = *cursor.entry;
    uint32_t above = 0, inside = 0;
    bool nan = false;
    visit_tile(source, e, first, [&](U m, int bit) {
      above |= static_cast<uint32_t>(m > high) << bit;
      inside |= static_cast<uint32_t>(static_cast<U>(m - low) <= range) << bit;
      nan |= m >= task.nan;
    });
    greater += static_cast<Count>(__popc(above));
    store_word(e, first, word_of_lane<U>(), to_words<U>(above));
    while (fit && __any_sync(kAllLanes, inside != 0)) {
      const unsigned have = __ballot_sync(kAllLanes, inside != 0);
      if (inside != 0) {  // the key is in the cache
        const int at = item_of<U>(__ffs(static_cast<int>(inside)) - 1);
        stage.of[staged + __popc(have & ((1u << lane) - 1))] = {smaller(source.magnitude(e, first + at), task.nan), tile * kTile + at};
        inside &= inside - 1;
      }
      staged += __popc(have);
      if (staged <= kStage - 32) continue;
      fit = store_candidates(task, stage, staged, low, shift);
      staged = 0;
    }
    if (__any_sync(kAllLanes, nan)) count_nan(source, e, first, task.nan);
  }
  if (staged > 0) store_candidates(task, stage, staged, low, shift);
  for (int by = 16; by; by /= 2) greater += __shfl_xor_sync(kAllLanes, greater, by);
  if (lane == 0) atomicAdd(&block_greater, greater);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(&s.greater, block_greater);
}

template <class Source>
__device__ inline void set_item(const Source& source, int64_t at) {
  const auto& e = source.table[find_entry(source.table, source.entries, at / kTile)];
  set_bits(e.bits, at - e.first_chunk * kTile, 1);
}

// Sets the bits of the candidates in bins above the rank's, and lists the bin's own; the last block ranks these. If the rank is not
// among the candidates, or they or the list did not fit, the path stays `bracket_missed`.
template <class Source>
__global__ void __launch_bounds__(kSelectThreads, kSmallBlocks) place(Source source, SelectionTask<typename Source::Key> task) {
  using U = typename Source::Key;
  SelectionState<U>& s = *task.state;
  const int64_t candidates = static_cast<int64_t>(s.candidates), rank = task.keep - static_cast<int64_t>(s.greater);
  const bool fit = candidates <= task.capacity && rank >= 0 && rank <= candidates;
  const int shift = bin_shift(s);
  Bin bin{kBins, 0};
  if (fit && rank > 0) bin = find_bin(s.bins[0], rank);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x; fit && i < candidates; i += static_cast<int64_t>(gridDim.x) * kSelectThreads) {
    const U key = task.keys[i];
    const int b = static_cast<int>((key - s.low) >> shift);
    if (b < bin.index) continue;
    const int64_t at = task.at_low[i] | (task.at_high != nullptr ? static_cast<int64_t>(task.at_high[i]) << kLowBits : 0);
    if (b > bin.index) {
      set_item(source, at);
    } else {
      const unsigned to = atomicAdd(&s.listed, 1u);
      if (to < kListed) s.list[to] = {key, at};
    }
  }
  if (!is_last_block(&s.ticket)) return;
  const unsigned listed = s.listed;
  if (fit && listed <= kListed) {
    for (unsigned i = threadIdx.x; i < listed; i += kSelectThreads) {
      const Candidate<U> mine = s.list[i];
      int64_t before = 0;
      for (unsigned j = 0; j < listed; ++j) before += s.list[j].key > mine.key || (s.list[j].key == mine.key && s.list[j].at < mine.at);
      if (before < bin.rank) set_item(source, mine.at);
    }
    if (threadIdx.x == 0) s.path = static_cast<int>(TopkPath::bracket);
  }
  clear_bins(s.bins[0]);
}

}  // namespace
}  // namespace acdc
