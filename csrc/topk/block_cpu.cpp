#include <algorithm>

#include "common/ieee.h"
#include "topk/block_bits.h"
#include "topk/pattern_pieces.h"
#include "topk/selection.h"

namespace acdc {
namespace {

constexpr int64_t kScores = 1024;  // computed at a time, on the stack
constexpr int64_t kAlignment = 64;

// The scores of a weight's blocks, in the order of their first weights, computed as they are read.
template <class U>
class BlockScores {
 public:
  static constexpr int64_t kBracketFrom = 0;  // fewer blocks are scored once and stored: see stored_bytes

  BlockScores(const PatternProblem& problem, BlockShape block)
      : problem_(problem), block_(block), size_(block.rows * block.columns),
        add_rows_(pattern_kernels().add_rows[static_cast<int>(problem.dtype)]) {}

  int tensors() const { return problem_.tensors; }
  int64_t numel(int t) const { return problem_.weights[t].numel / size_; }
  int64_t work() const { return total_numel(problem_); }

  template <class F>
  void blocks(const Chunk& c, const F& f) const {
    uint64_t scores[kScores];
    for (int64_t at = 0; at < c.count; at += kScores) {
      const int64_t n = std::min<int64_t>(kScores, c.count - at);
      copy(c.tensor, c.begin + at, n, scores);
      f(static_cast<const uint64_t*>(scores), n, at);
    }
  }

  void copy(int t, int64_t begin, int64_t count, uint64_t* out) const {
    const Axes axes(problem_.weights[t]);
    const int64_t band = axes.inputs / block_.columns * axes.kernel;
    while (count > 0) {
      const int64_t n = std::min({count, kScores, band - begin % band});
      score(problem_.weights[t], axes, begin / band, begin % band, n, reinterpret_cast<double*>(out));
      begin += n;
      out += n;
      count -= n;
    }
  }

  void prefetch(int t, int64_t begin) const {
    const TensorRef& w = problem_.weights[t];
    if (!w.contiguous) return;
    const Axes axes(w);
    const int64_t band = axes.inputs / block_.columns * axes.kernel, row = axes.inputs * axes.kernel;
    const U* first = static_cast<const U*>(w.data) + begin / band * block_.rows * row + begin % band * block_.columns;
    for (int64_t r = 0; r < std::min<int64_t>(block_.rows, 8); ++r) __builtin_prefetch(first + r * row);
  }

 private:
  // `n` blocks of one band of `rows` rows, from its block `first` on.
  void score(const TensorRef& w, const Axes& axes, int64_t band, int64_t first, int64_t n, double* out) const {
    const IeeeDenormals denormals;
    std::fill_n(out, n, 0.0);
    const int64_t row = axes.inputs * axes.kernel, begin = band * block_.rows * row;
    if (w.contiguous)
      add_rows_(out, static_cast<const U*>(w.data) + begin, block_.rows, row, first, n, block_.columns, axes.kernel);
    else
      for (int64_t r = 0; r < block_.rows; ++r) add_strided(w, axes, begin + r * row, first, n, out);
    const double size = static_cast<double>(size_);
    if ((size_ & (size_ - 1)) == 0)  // dividing by a power of two and multiplying by its inverse round alike
      for (int64_t i = 0; i < n; ++i) out[i] *= 1 / size;
    else
      for (int64_t i = 0; i < n; ++i) out[i] /= size;
  }

  // One row of a strided weight, in stretches of whole block columns, or of one column's kernel positions, gathered on the stack.
  void add_strided(const TensorRef& w, const Axes& axes, int64_t begin, int64_t first, int64_t n, double* out) const {
    U gathered[kMaxRun];
    const int64_t kernel = axes.kernel, columns = block_.columns, across = columns * kernel;
    while (n > 0) {
      const int64_t column = first / kernel, place = first % kernel;
      int64_t now;
      if (across <= kMaxRun) {
        now = std::min(n, kMaxRun / across * kernel - place);
        const int64_t stretch = (place + now + kernel - 1) / kernel * across;
        gather(w, begin + column * across, stretch, gathered);
        add_rows_(out, gathered, 1, 0, place, now, columns, kernel);
      } else {
        now = std::min({n, kernel - place, kMaxRun});
        for (int64_t c = 0; c < columns; ++c) {
          gather(w, begin + column * across + c * kernel + place, now, gathered);
          add_rows_(out, gathered, 1, 0, 0, now, 1, now);
        }
      }
      first += now;
      out += now;
      n -= now;
    }
  }

  const PatternProblem& problem_;
  BlockShape block_;
  int64_t size_;
  void (*add_rows_)(double*, const void*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
};

// Bytes of all scores where they may be stored, else 0.
int64_t stored_bytes(DType dtype, int64_t numel, int64_t block) {
  const int64_t bytes = numel / block * 8;
  const int64_t share = static_cast<int64_t>(0.02 * static_cast<double>(numel * element_bytes(dtype)));
  // Below 65536 blocks the selection among the stored needs no room for a bracket.
  const int64_t allowed = bytes <= 65536 * 8 ? share + 65536 * 8 : share;
  return bytes <= allowed ? (bytes + kAlignment - 1) / kAlignment * kAlignment : 0;
}

template <class U>
TopkPath block_mask(const PatternProblem& problem, BlockShape block, int64_t keep, void* scratch, int64_t scratch_bytes,
                    const Pool& pool) {
  const BlockScores<U> source(problem, block);
  const int64_t numel = total_numel(problem), stored = stored_bytes(problem.dtype, numel, block.rows * block.columns);
  const Pool workers = pool.for_elements(numel);
  TopkPath path;
  if (stored || numel == 0) {
    uint64_t* const scores = static_cast<uint64_t*>(scratch);
    struct Row {
      int64_t size, stride, begin;
    };
    std::vector<Row> rows;
    std::vector<TensorRef> refs;
    int64_t before = 0;
    for (int t = 0; t < problem.tensors; before += source.numel(t), ++t) rows.push_back({source.numel(t), 1, before});
    for (const Row& row : rows) refs.push_back({scores + row.begin, row.size, &row.size, &row.stride, 1, true});
    const int32_t a_chunk = static_cast<int32_t>(std::max<int64_t>(1, kChunk / (block.rows * block.columns)) * 8);
    const std::vector<Chunk> chunks = make_chunks(problem.tensors, [&](int t) { return source.numel(t); }, a_chunk);
    for_each_item(workers, static_cast<int64_t>(chunks.size()), [&](int, int64_t i) {
      const Chunk& c = chunks[static_cast<size_t>(i)];
      source.copy(c.tensor, c.begin, c.count, scores + rows[static_cast<size_t>(c.tensor)].begin + c.begin);
    });
    path = topk_mask_cpu({DType::f64, refs.data(), problem.bits, problem.nan_count, problem.tensors, keep},
                         static_cast<char*>(scratch) + stored, scratch_bytes - stored, pool, false);
  } else {
    path = Selection<uint64_t, BlockScores<U>>(source, DType::f64, keep, problem.bits, problem.nan_count, scratch, scratch_bytes, pool)
               .run(false);
  }
  // NaNs were counted in blocks; a score is NaN exactly where a weight is.
  for_each_item(workers, problem.tensors, [&](int, int64_t i) {
    const int t = static_cast<int>(i);
    spread_block_bits(Axes(problem.weights[t]), block, problem.bits[t]);
    if (problem.nan_count[t] == 0) return;
    problem.nan_count[t] = 0;
    count_nans<U>(problem, t, 0, problem.weights[t].numel);
  });
  return path;
}

}  // namespace

int64_t block_scratch_bytes(DType dtype, int64_t numel, BlockShape block, int threads) {
  const int64_t size = block.rows * block.columns, blocks = numel / size;
  if (const int64_t stored = stored_bytes(dtype, numel, size); stored || numel == 0)
    return stored + topk_scratch_bytes(DType::f64, blocks, threads);
  return histogram_bytes<uint64_t>(threads) + candidate_bytes<uint64_t>(std::min(blocks * 8, numel * element_bytes(dtype)));
}

TopkPath block_mask_cpu(const PatternProblem& problem, BlockShape block, int64_t keep, void* scratch, int64_t scratch_bytes,
                        const Pool& pool) {
  switch (element_bytes(problem.dtype)) {
    case 8: return block_mask<uint64_t>(problem, block, keep, scratch, scratch_bytes, pool);
    case 4: return block_mask<uint32_t>(problem, block, keep, scratch, scratch_bytes, pool);
    default: return block_mask<uint16_t>(problem, block, keep, scratch, scratch_bytes, pool);
  }
}

}  // namespace acdc
