#include <vector>

#include "common/half_cuda.h"
#include "common/upload.h"
#include "topk/block_cuda.h"
#include "topk/selection_cuda.h"

namespace acdc {
namespace {

struct BlockEntry {
  uint8_t* bits;  // of blocks, in scratch
  int64_t numel;  // blocks
  int64_t first_item, first_chunk;
  int64_t* nan_count;       // of blocks whose score is NaN, in scratch
  const uint64_t* scores;   // [numel], or null: computed when they are read
  const void* data;
  uint8_t* mask;
  int64_t* nan_weights;
  int64_t inputs, kernel, band;  // band: blocks that lie side by side
  int64_t first_word;       // 32-bit words of the masks before this one's
  Layout layout;
};

__device__ inline double magnitude(float x) { return fabs(static_cast<double>(x)); }
__device__ inline double magnitude(double x) { return fabs(x); }
__device__ inline double magnitude(bf16 x) { return magnitude(widen(x)); }
__device__ inline double magnitude(f16 x) { return magnitude(widen(x)); }

// f(p) with p the entry's first weight, by its type.
template <class F>
__device__ inline auto of_type(DType dtype, const void* data, const F& f) {
  switch (dtype) {
    case DType::f32: return f(static_cast<const float*>(data));
    case DType::f64: return f(static_cast<const double*>(data));
    case DType::bf16: return f(static_cast<const bf16*>(data));
    default: return f(static_cast<const f16*>(data));
  }
}

// Where the first weight of a block lies, in logical order: blocks follow each other as their first weights do.
__device__ inline int64_t first_weight(const BlockEntry& e, BlockShape block, int64_t i) {
  const int64_t row = divide(i, e.band), in_band = i - row * e.band;
  const int64_t column = divide(in_band, e.kernel), place = in_band - column * e.kernel;
  return (row * block.rows * e.inputs + column * block.columns) * e.kernel + place;
}

// The bits of a block's score.
__device__ inline uint64_t score(const BlockEntry& e, BlockShape block, DType dtype, int64_t i) {
  const int64_t first = first_weight(e, block, i), row = e.inputs * e.kernel;
  const double sum = of_type(dtype, e.data, [&](const auto* w) {
    double total = 0;
    for (int64_t r = 0; r < block.rows; ++r)
      for (int64_t c = 0; c < block.columns; ++c) total = __dadd_rn(total, magnitude(w[offset_of(e.layout, first + r * row + c * e.kernel)]));
    return total;
  });
  return static_cast<uint64_t>(__double_as_longlong(__ddiv_rn(sum, static_cast<double>(block.rows * block.columns))));
}

struct Scores {
  using Key = uint64_t;
  using Entry = BlockEntry;
  const Entry* table;
  int64_t entries;
  BlockShape block;
  DType dtype;
  __device__ uint64_t magnitude(const Entry& e, int64_t i) const {
    return (e.scores != nullptr ? e.scores[i] : score(e, block, dtype, i)) & kMagnitude<uint64_t>;
  }
  __device__ const uint64_t* plain(const Entry& e) const { return e.scores; }
};

constexpr unsigned kBlockThreads = block_threads(128);

// Blocks whose rows are whole vectors, eight of which are on their way while one is added.
template <class T>
__device__ inline double add_row(double total, const T* row, int64_t columns) {
  constexpr int n = 16 / static_cast<int>(sizeof(T)), together = 8;
  struct alignas(16) Vector {
    T of[n];
  };
  const Vector* from = reinterpret_cast<const Vector*>(row);
  const int64_t vectors = columns / n;
  for (int64_t v = 0; v < vectors; v += together) {
    Vector held[together];
    ACDC_UNROLLED
    for (int j = 0; j < together; ++j) held[j] = from[v + j < vectors ? v + j : v];
    ACDC_UNROLLED
    for (int j = 0; j < together; ++j) {
      if (v + j >= vectors) continue;
      ACDC_UNROLLED
      for (int k = 0; k < n; ++k) total = __dadd_rn(total, magnitude(held[j].of[k]));
    }
  }
  return total;
}

// Stores all scores, a thread a block.
__global__ void __launch_bounds__(kBlockThreads) store_scores(Scores source, int64_t blocks) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, size = source.block.rows * source.block.columns;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < blocks; at += step) {
    const BlockEntry& e = entry_of_item(source.table, source.entries, at);
    const int64_t i = at - e.first_item;
    uint64_t* to = const_cast<uint64_t*>(e.scores) + i;
    const int64_t bytes = source.dtype == DType::f64 ? 8 : source.dtype == DType::f32 ? 4 : 2;
    const bool vectors = e.layout.dims == 0 && e.kernel == 1 && is_aligned16(e.data) && source.block.columns * bytes % 16 == 0;
    if (!vectors) {
      *to = score(e, source.block, source.dtype, i);
      continue;
    }
    const int64_t first = first_weight(e, source.block, i);
    const double sum = of_type(source.dtype, e.data, [&](const auto* w) {
      double total = 0;
      for (int64_t r = 0; r < source.block.rows; ++r) total = add_row(total, w + first + r * e.inputs, source.block.columns);
      return total;
    });
    *to = static_cast<uint64_t>(__double_as_longlong(__ddiv_rn(sum, static_cast<double>(size))));
  }
}

__device__ inline bool is_kept(const BlockEntry& e, int64_t i) { return e.bits[i >> 3] >> (i & 7) & 1; }

// The word of the mask that starts at weight `first`.
__device__ inline uint32_t spread_word(const BlockEntry& e, BlockShape block, int64_t first, int count) {
  const int64_t row = e.inputs * e.kernel, o = divide(first, row), in_row = first - o * row;
  int64_t column = divide(in_row, e.kernel), place = in_row - column * e.kernel;
  const int64_t above = divide(o, block.rows), before = divide(column, block.columns);
  int64_t in_block = column - before * block.columns, of_row = o - above * block.rows, item = above * e.band + before * e.kernel + place;
  uint32_t word = 0;
  for (int bit = 0; bit < count;) {
    int run = 1;  // weights of one block that follow each other
    if (e.kernel == 1) run = static_cast<int>(smaller<int64_t>(block.columns - in_block, count - bit));
    if (is_kept(e, item)) word |= (run == 32 ? ~0u : (1u << run) - 1) << bit;
    bit += run;
    if (e.kernel > 1) {
      ++item;
      if (++place < e.kernel) continue;
      place = 0;
      item -= e.kernel;
    }
    column += run;
    in_block += run;
    if (in_block == block.columns) {
      in_block = 0;
      item += e.kernel;
    }
    if (column < e.inputs) continue;
    column = 0;  // the next row: of the same blocks, or the next band's, whose blocks come next
    if (++of_row < block.rows)
      item -= e.band;
    else
      of_row = 0;
  }
  return word;
}

// The bits of weights from those of blocks, a lane a word; NaN weights are counted where a score was NaN.
__global__ void spread(Scores source, int64_t words) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < words; at += step) {
    int64_t low = 0, high = source.entries;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (source.table[middle].first_word <= at ? low : high) = middle;
    }
    const BlockEntry& e = source.table[low];
    const int64_t first = 32 * (at - e.first_word), left = e.layout.numel - first;
    const int count = left < 32 ? static_cast<int>(left) : 32;
    const uint32_t word = spread_word(e, source.block, first, count);
    if (count == 32) {
      reinterpret_cast<uint32_t*>(e.mask)[first / 32] = word;
    } else {
      for (int j = 0; 8 * j < count; ++j) e.mask[first / 8 + j] = static_cast<uint8_t>(word >> (8 * j));
    }
    if (*e.nan_count == 0) continue;
    const Count found = of_type(source.dtype, e.data, [&](const auto* w) {
      Count n = 0;
      for (int j = 0; j < count; ++j) {
        const double m = magnitude(w[offset_of(e.layout, first + j)]);
        n += m != m;
      }
      return n;
    });
    if (found) atomicAdd(reinterpret_cast<Count*>(e.nan_weights), found);
  }
}

// Where everything lies in scratch, in bytes from its start.
struct Plan {
  int64_t items = 0, tiles = 0, words = 0, weights = 0;
  int64_t room = 0, table = 0, counters = 0, scores = 0, bits = 0, bytes = 0;
  bool stored = false;

  explicit Plan(const BlockProblem& p) {
    const int64_t size = p.block.rows * p.block.columns;
    for (int64_t i = 0; i < p.tensors; ++i) {
      const int64_t numel = p.weights[i].weight.layout.numel;
      if (numel == 0) continue;
      ++weights;
      items += numel / size;
      tiles += tiles_of(numel / size);
      words += (numel + 31) / 32;
      bits += (numel / size + 31) / 32 * 4;
    }
    const int64_t whole = items * size * element_bytes(p.dtype), bit_bytes = bits;
    stored = items * 8 <= static_cast<int64_t>(0.02 * static_cast<double>(whole)) + (int64_t{64} << 10);
    // Stored scores are few, and read again at no cost.
    if (!stored) room = smaller_of(candidate_room_bytes<uint64_t>(items), static_cast<int64_t>(0.028 * static_cast<double>(whole)) - bit_bytes + (int64_t{128} << 10));
    table = selection_scratch_bytes<uint64_t>(room);
    counters = table + weights * static_cast<int64_t>(sizeof(BlockEntry));
    scores = (counters + weights * 8 + 15) / 16 * 16;
    bits = scores + (stored ? (items + 2 * weights) * 8 : 0);
    bytes = bits + bit_bytes;
  }

 private:
  static int64_t smaller_of(int64_t a, int64_t b) { return std::max<int64_t>(std::min(a, b), 0) / 16 * 16; }
};

}  // namespace

int64_t block_cuda_scratch_bytes(const BlockProblem& problem) { return Plan(problem).bytes; }

cudaError_t block_mask_cuda(const BlockProblem& problem, void* scratch, cudaStream_t stream) {
  const Plan plan(problem);
  cudaError_t error = cudaMemsetAsync(problem.nan_count, 0, static_cast<size_t>(problem.tensors) * 8, stream);
  if (error != cudaSuccess || plan.weights == 0) return error;
  char* base = static_cast<char*>(scratch);
  int64_t* counters = reinterpret_cast<int64_t*>(base + plan.counters);
  uint64_t* scores = reinterpret_cast<uint64_t*>(base + plan.scores);
  uint8_t* bits = reinterpret_cast<uint8_t*>(base + plan.bits);
  const int64_t size = problem.block.rows * problem.block.columns;
  std::vector<BlockEntry> entries;
  int64_t items = 0, tiles = 0, words = 0;
  for (int64_t i = 0; i < problem.tensors; ++i) {
    const BlockWeight& w = problem.weights[i];
    const int64_t numel = w.weight.layout.numel, blocks = numel / size;
    if (numel == 0) continue;
    entries.push_back({bits, blocks, items, tiles, counters++, plan.stored ? scores : nullptr, w.weight.data, w.weight.bits,
                       problem.nan_count + i, w.inputs, w.kernel, w.inputs / problem.block.columns * w.kernel, words, w.weight.layout});
    bits += (blocks + 31) / 32 * 4;
    scores += (blocks + 1) / 2 * 2;  // each begins on a multiple of 16 bytes
    items += blocks;
    tiles += tiles_of(blocks);
    words += (numel + 31) / 32;
  }
  BlockEntry* table = reinterpret_cast<BlockEntry*>(base + plan.table);
  error = upload(entries.data(), plan.weights, table, stream);
  const Scores source{table, plan.weights, problem.block, problem.dtype};
  if (plan.stored && error == cudaSuccess)
    error = ACDC_LAUNCH(store_scores, grid_for((items + kBlockThreads - 1) / kBlockThreads, 16), kBlockThreads, stream, source, items);
  if (error == cudaSuccess)
    error = select_largest(source, {DType::f64, items, tiles, problem.keep, !plan.stored, reinterpret_cast<int64_t*>(base + plan.counters), plan.weights,
                                    scratch, plan.room},
                           stream);
  if (error != cudaSuccess) return error;
  return ACDC_LAUNCH(spread, grid_for((words + kBlockThreads - 1) / kBlockThreads, 16), kBlockThreads, stream, source, words);
}

}  // namespace acdc
