#include <vector>

#include "topk/block_scores.h"
#include "topk/selection_cuda.h"

namespace acdc {
namespace {

constexpr unsigned kBlockThreads = block_threads(256);
constexpr int64_t kTogether = 64;    // blocks of so many weights and more are summed by a warp each
constexpr int64_t kFewBlocks = 65536;
constexpr int64_t kPathBytes = 64;   // of the scratch memory's front: what the selection leaves there

// Stored scores.
template <class U>
__global__ void __launch_bounds__(kBlockThreads, 2) score(Scores<U> source, uint64_t* scores, int64_t blocks) {
  const bool together = source.block.rows * source.block.columns >= kTogether;
  const int64_t each = together ? 32 : 1, step = static_cast<int64_t>(gridDim.x) * kBlockThreads / each;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x) / each; i < blocks; i += step) {
    const BlockEntry& e = entry_of_item(source.table, source.entries, i);
    const int64_t at = i - e.first_item;
    const uint64_t key = together ? score_together(source, e, at) : source.magnitude(e, at);
    if (!together || (threadIdx.x & 31) == 0) scores[e.score + at] = key;
  }
}

// The selection counted the blocks that have NaNs; adds the other NaNs of each.
template <class U>
__global__ void __launch_bounds__(kSelectThreads) count_other_nans(Scores<U> source, int64_t tiles, U nan) {
  Cursor<Scores<U>> cursor(source);
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kSelectWarps + threadIdx.x / 32; tile < tiles; tile += static_cast<int64_t>(gridDim.x) * kSelectWarps) {
    const int64_t first = cursor.move_to(tile);
    const BlockEntry& e = *cursor.entry;
    if (*e.nan_count == 0) continue;
    for (int64_t i = first + (threadIdx.x & 31); i < first + kTile && i < e.numel; i += 32) {
      const U* p = source.first(e, i);
      Count nans = 0;
      for (int64_t r = 0; r < source.block.rows; ++r)
        for (int64_t c = 0; c < source.block.columns; ++c) nans += static_cast<U>(p[r * e.at.output + c * e.at.input] & kMagnitude<U>) >= nan;
      if (nans > 1) atomicAdd(reinterpret_cast<Count*>(e.nan_count), nans - 1);
    }
  }
}

// Rows [first band, ..) of a weight, whose blocks' bits are copied from the front of its mask before they are spread over it.
struct SpreadEntry {
  uint8_t* bits;
  int64_t first_chunk;          // chunks are kBlockThreads words of weights' bits
  int64_t begin, end;           // weights; begin is a multiple of 32
  int64_t first_block, blocks;  // first_block is a multiple of 32
  int64_t kept;                 // the word where the copy begins
  int64_t across, kernel;       // blocks across; kernel positions, or a whole row of blocks of one column
};

struct SpreadTable {
  const SpreadEntry* table;
  int64_t entries, chunks;
  uint32_t* kept;
  BlockShape block;
};

__global__ void copy_blocks(SpreadTable t) {
  for (int64_t chunk = blockIdx.x; chunk < t.chunks; chunk += gridDim.x) {
    const SpreadEntry& e = t.table[find_entry(t.table, t.entries, chunk)];
    const int64_t w = (chunk - e.first_chunk) * kBlockThreads + threadIdx.x;
    if (w < (e.blocks + 31) / 32) t.kept[e.kept + w] = reinterpret_cast<const uint32_t*>(e.bits)[e.first_block / 32 + w];
  }
}

// n bits from bit `at` on, 1 <= n <= 32.
__device__ inline uint32_t bits_at(const uint32_t* words, int64_t at, int n) {
  const int shift = static_cast<int>(at & 31);
  uint32_t bits = words[at >> 5] >> shift;
  if (shift + n > 32) bits |= words[(at >> 5) + 1] << (32 - shift);
  return bits & ~0u >> (32 - n);
}

// A thread a word. Kernel positions of one column of weights have the bits of as many blocks, one after another.
__global__ void __launch_bounds__(kBlockThreads) spread(SpreadTable t) {
  for (int64_t chunk = blockIdx.x; chunk < t.chunks; chunk += gridDim.x) {
    const SpreadEntry& e = t.table[find_entry(t.table, t.entries, chunk)];
    const uint32_t* kept = t.kept + e.kept;
    const int64_t first = e.begin + ((chunk - e.first_chunk) * kBlockThreads + threadIdx.x) * 32, wide = t.block.columns * e.kernel;
    if (first >= e.end) continue;
    const int n = e.end - first < 32 ? static_cast<int>(e.end - first) : 32;
    const int64_t stretch = divide(first, wide), row = divide(stretch, e.across);
    int64_t output = row, block = stretch - row * e.across, column = divide(first - stretch * wide, e.kernel);
    int64_t place = first - stretch * wide - column * e.kernel, band = divide(output, t.block.rows) * e.across * e.kernel - e.first_block;
    uint32_t word = 0;
    for (int done = 0; done < n;) {
      int run;
      uint32_t bits;
      if (e.kernel == 1) {
        run = static_cast<int>(smaller<int64_t>(n - done, t.block.columns - column));
        bits = bits_at(kept, band + block, 1) ? ~0u >> (32 - run) : 0;
        column += run;
      } else {
        run = static_cast<int>(smaller<int64_t>(n - done, e.kernel - place));
        bits = bits_at(kept, band + block * e.kernel + place, run);
        place += run;
        if (place == e.kernel) place = 0, ++column;
      }
      word |= bits << done;
      done += run;
      if (column == t.block.columns) column = 0, ++block;
      if (block == e.across) {
        block = 0;
        band = divide(++output, t.block.rows) * e.across * e.kernel - e.first_block;
      }
    }
    if (n == 32)
      reinterpret_cast<uint32_t*>(e.bits)[first / 32] = word;
    else
      for (int j = 0; 8 * j < n; ++j) e.bits[first / 8 + j] = static_cast<uint8_t>(word >> (8 * j));
  }
}

// What goes where in the scratch memory: the selection's, stored scores, tables. Behind kPathBytes, copies take the place of the first two.
struct Plan {
  std::vector<BlockEntry> entries;
  std::vector<Layout> layouts;
  std::vector<SpreadEntry> parts[2];  // one after another; mostly only one
  int64_t blocks = 0, tiles = 0, stored = 0;  // stored: scores
  int64_t room_bytes = 0, front_bytes = 0;

  static int64_t whole(int64_t bytes) { return (bytes + 15) / 16 * 16; }
  template <class Entry>
  static int64_t bytes_of(const std::vector<Entry>& v) { return whole(static_cast<int64_t>(v.size() * sizeof(Entry))); }
  int64_t bytes() const { return front_bytes + bytes_of(entries) + bytes_of(layouts) + bytes_of(parts[0]) + bytes_of(parts[1]); }
  int64_t select_bytes() const { return whole(selection_scratch_bytes<uint64_t>(room_bytes)); }

  Plan(const PatternCudaProblem& p, BlockShape block) {
    HostTables tables = tables_of(p);
    layouts = std::move(tables.layouts);
    const int64_t size = block.rows * block.columns;
    int64_t numel = 0, scores = 0;
    for (const PatternEntry& e : tables.entries) {
      const int64_t n = e.numel / size;
      entries.push_back({e.bits, n, blocks, tiles, e.nan_count, e.data, scores, e.at});
      numel += e.numel, blocks += n, tiles += tiles_of(n), scores += (n + 1) / 2 * 2;
    }
    const auto weight_bytes = static_cast<double>(numel * element_bytes(p.dtype));
    if (blocks <= kFewBlocks || static_cast<double>(8 * blocks) <= 0.02 * weight_bytes) stored = scores;
    const auto most = static_cast<int64_t>(0.0275 * weight_bytes) + (int64_t{224} << 10);
    room_bytes = smaller_of(candidate_room_bytes<uint64_t>(blocks), most) / 16 * 16;
    front_bytes = select_bytes() + 8 * stored;
    int64_t kept = spread_parts(block, false);
    if (kPathBytes + 4 * kept > front_bytes) kept = spread_parts(block, true);
    front_bytes = whole(std::max(front_bytes, kPathBytes + 4 * kept));
  }

 private:
  static int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

  // In one part, or the second half of each weight's bands and then the first; the words that the larger part's copy takes.
  int64_t spread_parts(BlockShape block, bool halves) {
    int64_t words[2] = {}, chunks[2] = {};
    for (auto& part : parts) part.clear();
    for (const BlockEntry& e : entries) {
      const bool joined = block.columns == 1;
      const int64_t across = joined ? 1 : e.at.inputs / block.columns, kernel = joined ? e.at.inputs * e.at.kernel : e.at.kernel;
      const int64_t band = across * kernel, bands = e.numel / band, size = block.rows * block.columns;
      const int64_t from[3] = {bands, halves ? bands / 2 / 32 * 32 : 0, 0};
      for (int part = 0; part < 2; ++part) {
        const int64_t first = from[part + 1] * band, n = from[part] * band - first;
        if (n == 0) continue;
        parts[part].push_back({e.bits, chunks[part], first * size, (first + n) * size, first, n, words[part], across, kernel});
        words[part] += (n + 31) / 32;
        chunks[part] += (n * size + 32 * int64_t{kBlockThreads} - 1) / (32 * int64_t{kBlockThreads});
      }
    }
    return std::max(words[0], words[1]);
  }
};

int64_t chunks_of(const std::vector<SpreadEntry>& part) {
  const SpreadEntry& e = part.back();
  return e.first_chunk + (e.end - e.begin + 32 * int64_t{kBlockThreads} - 1) / (32 * int64_t{kBlockThreads});
}

template <class U>
cudaError_t block_mask(const PatternCudaProblem& p, BlockShape block, int64_t keep, void* scratch, bool force_radix, cudaStream_t stream) {
  const Plan plan(p, block);
  char* front = static_cast<char*>(scratch);
  char* memory = front + plan.front_bytes;
  auto send = [&](const auto& table) {
    void* to = memory;
    memory += Plan::bytes_of(table);
    return upload(table.data(), static_cast<int64_t>(table.size()), to, stream);
  };
  Scores<U> source{};
  source.table = reinterpret_cast<const BlockEntry*>(memory);
  source.entries = static_cast<int64_t>(plan.entries.size());
  cudaError_t error = send(plan.entries);
  source.layouts = reinterpret_cast<const Layout*>(memory);
  if (error == cudaSuccess) error = send(plan.layouts);
  source.block = block;
  const int64_t size = block.rows * block.columns;
  source.size = static_cast<double>(size);
  source.inverse = (size & (size - 1)) == 0 ? 1 / source.size : 0;
  source.bf16 = p.dtype == DType::bf16;
  const SelectionRequest request{DType::f64, plan.blocks, plan.tiles, keep, !force_radix, p.nan_count, p.tensors, scratch, plan.room_bytes};
  if (plan.stored > 0) {
    auto* scores = reinterpret_cast<uint64_t*>(front + plan.select_bytes());
    auto kernel = score<U>;
    const int64_t threads = plan.blocks * (size >= kTogether ? 32 : 1);
    if (error == cudaSuccess) error = ACDC_LAUNCH(kernel, grid_for((threads + kBlockThreads - 1) / kBlockThreads, 8), kBlockThreads, stream, source, scores, plan.blocks);
    if (error == cudaSuccess) error = select_largest(StoredScores{source.table, source.entries, scores}, request, stream);
  } else if (error == cudaSuccess) {
    error = select_largest(source, request, stream);
  }
  auto count = count_other_nans<U>;
  if (error == cudaSuccess) error = ACDC_LAUNCH(count, grid_for((plan.tiles + kSelectWarps - 1) / kSelectWarps, 4), kSelectThreads, stream, source, plan.tiles, rule_for<U>(p.dtype).nan);
  for (const auto& part : plan.parts) {
    if (part.empty()) continue;
    const SpreadTable t{reinterpret_cast<const SpreadEntry*>(memory), static_cast<int64_t>(part.size()), chunks_of(part),
                        reinterpret_cast<uint32_t*>(front + kPathBytes), block};
    if (error == cudaSuccess) error = send(part);
    if (error == cudaSuccess) error = ACDC_LAUNCH(copy_blocks, grid_for(t.chunks, 8), kBlockThreads, stream, t);
    if (error == cudaSuccess) error = ACDC_LAUNCH(spread, grid_for(t.chunks, 8), kBlockThreads, stream, t);
  }
  return error;
}

}  // namespace

int64_t block_cuda_scratch_bytes(const PatternCudaProblem& problem, BlockShape block) { return Plan(problem, block).bytes(); }

cudaError_t block_mask_cuda(const PatternCudaProblem& problem, BlockShape block, int64_t keep, void* scratch, bool force_radix,
                            cudaStream_t stream) {
  switch (element_bytes(problem.dtype)) {
    case 8: return block_mask<uint64_t>(problem, block, keep, scratch, force_radix, stream);
    case 4: return block_mask<uint32_t>(problem, block, keep, scratch, force_radix, stream);
    default: return block_mask<uint16_t>(problem, block, keep, scratch, force_radix, stream);
  }
}

}  // namespace acdc
