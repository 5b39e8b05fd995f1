// Each block counts a run of chunks in shared memory, and adds what isn't zero to the result wherever the row changes and at the end.
#include "common/table.h"
#include "common/upload.h"
#include "topk/histogram.h"
#include "topk/histogram_cuda.h"
#include "topk/key_rule.h"

namespace acdc {
namespace {

constexpr unsigned kThreads = block_threads(256);
constexpr int kBatch = 2;  // loads of 16 bytes that a thread has in flight

using Total = unsigned long long;  // what atomicAdd takes; the results are int64_t

// What each block has of all chunks: `each`, and the first `more` blocks one more.
struct Share {
  int64_t each, more;
  __device__ int64_t first(int64_t block) const { return each * block + (block < more ? block : more); }
};

struct Bins {
  uint32_t count[(1 << kHistogramBits) + 1];  // the last one counts the keys above
};

// A row's interval, as a thread counts in it.
template <class U, bool kStrided>
struct Window {
  KeyRule<U> rule;
  U base;
  int bits, shift;
  uint32_t above;  // seen by this thread

  // Called by whole warps. One lane adds for all whose bin is the first one's: zeros and ties would wait for one another.
  __device__ void count(U u, bool there, uint32_t* bins) {
    U key = static_cast<U>(u & rule.magnitude);
    if (key > rule.nan) key = rule.nan;
    const U bin = static_cast<U>(static_cast<U>(key - base) >> shift);
    const bool reached = there && key >= base, inside = reached && bin >> bits == 0;
    above += reached && !inside;
    const unsigned counted = __ballot_sync(kAllLanes, inside);
    if (counted == 0) return;
    const int lane = static_cast<int>(threadIdx.x & 31), first = __ffs(static_cast<int>(counted)) - 1;
    const uint32_t mine = static_cast<uint32_t>(bin), shared_bin = __shfl_sync(kAllLanes, mine, first);
    const unsigned same = __ballot_sync(kAllLanes, inside && mine == shared_bin);
    if (lane == first)
      atomicAdd(&bins[mine], static_cast<uint32_t>(__popc(same)));
    else if (inside && mine != shared_bin)
      atomicAdd(&bins[mine], 1u);
  }

  __device__ void count(const Bytes16& v, bool there, uint32_t* bins) {
    constexpr int kElements = 16 / sizeof(U);
    for (int j = 0; j < kElements; ++j) {
      if constexpr (sizeof(U) == 8)
        count(static_cast<U>(v.word[2 * j] | static_cast<U>(v.word[2 * j + 1]) << 32), there, bins);
      else
        count(static_cast<U>(v.word[j * sizeof(U) / 4] >> (8 * (j * sizeof(U) % 4))), there, bins);
    }
  }

  __device__ void count_chunk(const CountedLayout& w, int64_t begin, uint32_t* bins) {
    const U* data = static_cast<const U*>(w.data);
    const int64_t left = w.layout.numel - begin;
    const int n = static_cast<int>(left < kCountChunk ? left : kCountChunk), lane = static_cast<int>(threadIdx.x & 31);
    constexpr int kStep = static_cast<int>(kThreads);
    int done = 0;  // whole warps go round together: what a lane has not, it passes as not there
    if ((!kStrided || w.layout.dims == 0) && is_aligned16(data)) {
      const Bytes16* from = reinterpret_cast<const Bytes16*>(data + begin);
      const int loads = n / static_cast<int>(16 / sizeof(U));
      for (int i = static_cast<int>(threadIdx.x); i - lane < loads; i += kBatch * kStep) {
        Bytes16 v[kBatch];
        for (int b = 0; b < kBatch; ++b) v[b] = i + b * kStep < loads ? from[i + b * kStep] : Bytes16{};
        for (int b = 0; b < kBatch; ++b) count(v[b], i + b * kStep < loads, bins);
      }
      done = loads * static_cast<int>(16 / sizeof(U));
    }
    for (int i = done + static_cast<int>(threadIdx.x); i - lane < n; i += kStep) {
      const bool there = i < n;
      count(there ? data[kStrided ? offset_of(w.layout, begin + i) : begin + i] : U{0}, there, bins);
    }
  }
};

// Adds the block's counts to a row, and sets them to zero.
__device__ void flush(uint32_t* bins, int columns, uint32_t above, Total* row) {
  const uint32_t sum = __reduce_add_sync(kAllLanes, above);
  if ((threadIdx.x & 31) == 0 && sum) atomicAdd(&bins[columns - 1], sum);
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < columns; b += static_cast<int>(kThreads)) {
    if (bins[b]) atomicAdd(&row[b], Total{bins[b]});
    bins[b] = 0;
  }
  __syncthreads();
}

// Without kStrided every weight is contiguous, and there is no need for the registers that divisions take.
template <class U, bool kStrided>
__global__ void __launch_bounds__(kThreads, kStrided ? 3 : 5)
    histogram(const CountedLayout* table, int64_t tensors, Share share, const int64_t* base, KeyRule<U> rule, int bits, int shift,
              Total* counts) {
  ACDC_SHARED(Bins, shared);
  const int64_t first = share.first(blockIdx.x), last = share.first(blockIdx.x + 1);
  const int columns = (1 << bits) + 1;
  for (int b = static_cast<int>(threadIdx.x); b < columns; b += static_cast<int>(kThreads)) shared.count[b] = 0;
  __syncthreads();
  int64_t at = find_entry(table, tensors, first), pending = 0, row = table[at].row;
  Window<U, kStrided> window{rule, static_cast<U>(base[row]), bits, shift, 0};
  for (int64_t chunk = first; chunk < last; ++chunk) {
    while (at + 1 < tensors && table[at + 1].first_chunk <= chunk) ++at;
    const CountedLayout& w = table[at];
    if (w.row != row || pending > int64_t{1} << 31) {  // 32-bit counts stay exact
      flush(shared.count, columns, window.above, counts + row * columns);
      row = w.row;
      pending = 0;
      window.base = static_cast<U>(base[row]);
      window.above = 0;
    }
    pending += kCountChunk;
    window.count_chunk(w, (chunk - w.first_chunk) * kCountChunk, shared.count);
  }
  flush(shared.count, columns, window.above, counts + row * columns);
}

template <class U, bool kStrided>
cudaError_t launch(const CudaHistogramProblem& p, const CountedLayout* table, int64_t* counts, cudaStream_t stream) {
  const CountedLayout& last = p.weights[p.tensors - 1];
  const int64_t chunks = last.first_chunk + (last.layout.numel + kCountChunk - 1) / kCountChunk;
  const unsigned blocks = grid_for(chunks, kStrided ? 3 : 5);
  const Share share{chunks / blocks, chunks % blocks};
  auto kernel = histogram<U, kStrided>;  // a comma would divide the macro's arguments
  return ACDC_LAUNCH(kernel, blocks, kThreads, stream, table, p.tensors, share, p.base, rule_for<U>(p.dtype),
                     p.width - p.shift, p.shift, reinterpret_cast<Total*>(counts));
}

template <class U>
cudaError_t launch(const CudaHistogramProblem& p, const CountedLayout* table, int64_t* counts, cudaStream_t stream) {
  for (int64_t t = 0; t < p.tensors; ++t)
    if (p.weights[t].layout.dims) return launch<U, true>(p, table, counts, stream);
  return launch<U, false>(p, table, counts, stream);
}

}  // namespace

cudaError_t magnitude_histogram_cuda(const CudaHistogramProblem& p, int64_t* counts, void* table, cudaStream_t stream) {
  const int64_t columns = (int64_t{1} << (p.width - p.shift)) + 1;
  cudaError_t error = cudaMemsetAsync(counts, 0, static_cast<size_t>(p.rows * columns) * sizeof(int64_t), stream);
  if (error != cudaSuccess || p.tensors == 0) return error;
  error = upload(p.weights, p.tensors, table, stream);
  if (error != cudaSuccess) return error;
  const CountedLayout* layouts = static_cast<const CountedLayout*>(table);
  switch (element_bytes(p.dtype)) {
    case 8: return launch<uint64_t>(p, layouts, counts, stream);
    case 4: return launch<uint32_t>(p, layouts, counts, stream);
    default: return launch<uint16_t>(p, layouts, counts, stream);
  }
}

}  // namespace acdc
