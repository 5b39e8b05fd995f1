#include "topk/histogram.h"

#include <algorithm>
#include <vector>

#include "common/chunks.h"
#include "topk/key_rule.h"
#include "topk/pattern_pieces.h"

namespace acdc {
namespace {

constexpr int32_t kChunk = 16384;
constexpr int kWorkers = 16;  // each has a histogram of its own

inline const TopkLoops<uint16_t>& loops_for(uint16_t) { return topk_kernels().u16; }
inline const TopkLoops<uint32_t>& loops_for(uint32_t) { return topk_kernels().u32; }
inline const TopkLoops<uint64_t>& loops_for(uint64_t) { return topk_kernels().u64; }

template <class U>
void run(const HistogramProblem& p, int64_t* counts, uint32_t* scratch, const Pool& pool) {
  const TopkLoops<U>& loops = loops_for(U{});
  const KeyRule<U> rule = rule_for<U>(p.dtype);
  const int64_t bins = int64_t{1} << (p.width - p.shift), columns = bins + 1;
  std::fill_n(counts, (p.row_each ? p.tensors : 1) * columns, int64_t{0});
  struct Worker {
    int64_t row = 0, pending = 0, above = 0;
    char pad[40];  // one cache line each
  };
  const auto chunks = make_chunks(p.tensors, [&](int t) { return p.weights[t].numel; }, kChunk);
  int64_t numel = 0;
  for (int t = 0; t < p.tensors; ++t) numel += p.weights[t].numel;
  std::vector<Worker> workers(std::min(pool.threads, kWorkers));
  std::fill_n(scratch, static_cast<int64_t>(workers.size()) * bins, 0u);

  auto flush = [&](int worker) {
    Worker& w = workers[worker];
    uint32_t* mine = scratch + worker * bins;
    int64_t* row = counts + w.row * columns;
    for (int64_t b = 0; b < bins; ++b)
      if (mine[b]) __atomic_fetch_add(&row[b], int64_t{mine[b]}, __ATOMIC_RELAXED);
    if (w.above) __atomic_fetch_add(&row[bins], w.above, __ATOMIC_RELAXED);
    std::fill_n(mine, bins, 0u);
    w.pending = w.above = 0;
  };
  for_each_item(pool.for_elements(numel), static_cast<int64_t>(chunks.size()), kWorkers, [&](int worker, int64_t i) {
    const Chunk& c = chunks[i];
    Worker& w = workers[worker];
    const int64_t row = p.row_each ? c.tensor : 0;
    if (w.pending > 0 && (row != w.row || w.pending > int64_t{1} << 31)) flush(worker);  // 32-bit counts stay exact
    w.row = row;
    w.pending += c.count;
    const U base = static_cast<U>(p.base[row]);
    const uint64_t end = uint64_t{base} + (uint64_t{1} << p.width);
    uint32_t* mine = scratch + worker * bins;
    in_order<U>(p.weights[c.tensor], c.begin, c.count, kMaxRun, [&](const U* x, int64_t n, int64_t) {
      const int64_t above = end > rule.nan ? 0 : loops.count_from(x, n, rule, static_cast<U>(end));
      w.above += above;
      if (bins == 1)
        *mine += static_cast<uint32_t>(loops.count_from(x, n, rule, base) - above);
      else
        loops.histogram(x, n, rule, base, p.width, p.shift, mine);
    });
  });
  for (int worker = 0; worker < static_cast<int>(workers.size()); ++worker)
    if (workers[worker].pending) flush(worker);
}

}  // namespace

int64_t histogram_scratch_bytes(int width, int shift, int threads) {
  return (int64_t{4} << (width - shift)) * std::min(threads, kWorkers);
}

void magnitude_histogram_cpu(const HistogramProblem& problem, int64_t* counts, void* scratch, const Pool& pool) {
  uint32_t* bins = static_cast<uint32_t*>(scratch);
  switch (element_bytes(problem.dtype)) {
    case 8: return run<uint64_t>(problem, counts, bins, pool);
    case 4: return run<uint32_t>(problem, counts, bins, pool);
    default: return run<uint16_t>(problem, counts, bins, pool);
  }
}

}  // namespace acdc
