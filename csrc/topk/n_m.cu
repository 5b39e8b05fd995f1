#include "topk/pattern_tables.h"

namespace acdc {
namespace {

// Tables as Cursor takes them.
template <class U>
struct Weights : PatternTable {
  using Key = U;
  using Entry = PatternEntry;
  U nan;  // every NaN's key
  __device__ U key(U u) const {
    u = static_cast<U>(u & kMagnitude<U>);
    return u < nan ? u : nan;
  }
};

// Of eight keys in groups of M, which are among the n largest of their group, ties to the first. M <= 8.
template <int M, class U>
__device__ inline uint32_t kept_of_eight(const U (&key)[8], int n) {
  uint32_t beaten = 0;  // four bits a key: by how many of its group
  ACDC_UNROLLED
  for (int g = 0; g < 8; g += M) {
    ACDC_UNROLLED
    for (int j = 1; j < M; ++j) {
      ACDC_UNROLLED
      for (int i = 0; i < j; ++i) beaten += key[g + j] > key[g + i] ? 1u << (4 * (g + i)) : 1u << (4 * (g + j));
    }
  }
  uint32_t kept = ~(beaten + static_cast<uint32_t>(8 - n) * 0x11111111u) >> 3 & 0x11111111u;  // counts of n and more reach bit 3
  kept = (kept | kept >> 3) & 0x03030303u;
  kept = (kept | kept >> 6) & 0x000f000fu;
  return (kept | kept >> 12) & 0xffu;
}

// The byte of bits of eight weights, of which `count` are there; adds their NaNs.
template <int M, class U>
__device__ inline void write_eight(const Weights<U>& weights, U (&u)[8], int64_t count, int n, uint8_t* byte, unsigned* nans) {
  constexpr U sign = static_cast<U>(~kMagnitude<U>);
  U over = 0;  // its sign: whether there is a NaN
  ACDC_UNROLLED
  for (int i = 0; i < 8; ++i) {
    u[i] = static_cast<U>(u[i] & kMagnitude<U>);
    over = static_cast<U>(over | static_cast<U>(u[i] + static_cast<U>(sign - weights.nan)));
  }
  if (over & sign) {
    ACDC_UNROLLED
    for (int i = 0; i < 8; ++i) {
      *nans += u[i] >= weights.nan;
      u[i] = weights.key(u[i]);
    }
  }
  const uint32_t kept = kept_of_eight<M>(u, n);
  *byte = static_cast<uint8_t>(count >= 8 ? kept : kept & ((1u << count) - 1));
}

// The bits of a tile of a plain weight without kernel positions: eight weights a lane, four times.
template <int M, class U>
__device__ inline void rank_eights(const Weights<U>& weights, const PatternEntry& e, int64_t first, int n, unsigned* nans) {
  constexpr int loads = sizeof(U) / 2, together = sizeof(U) == 8 ? 2 : 4;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const U* data = static_cast<const U*>(e.data) + first;
  uint8_t* bytes = e.bits + first / 8;
  U u[8];
  if (e.numel - first < kTile) {
    ACDC_ROLLED
    for (int at = lane * 8; at < e.numel - first; at += 256) {
      const int64_t count = e.numel - first - at;
      ACDC_UNROLLED
      for (int i = 0; i < 8; ++i) u[i] = i < count ? data[at + i] : U{0};
      write_eight<M>(weights, u, count, n, bytes + at / 8, nans);
    }
    return;
  }
  const Bytes16* from = reinterpret_cast<const Bytes16*>(data) + lane * loads;
  ACDC_UNROLLED
  for (int done = 0; done < 4; done += together) {
    Bytes16 v[together][loads];
    ACDC_UNROLLED
    for (int j = 0; j < together; ++j) {
      ACDC_UNROLLED
      for (int l = 0; l < loads; ++l) v[j][l] = load16(from + (done + j) * 32 * loads + l);
    }
    ACDC_UNROLLED
    for (int j = 0; j < together; ++j) {
      ACDC_UNROLLED
      for (int i = 0; i < 8; ++i) u[i] = item<U>(v[j][i / kItems<U>], i % kItems<U>);
      write_eight<M>(weights, u, 8, n, bytes + (done + j) * 32 + lane, nans);
    }
  }
}

// The same of any weight, a lane a weight, by all m of its group.
template <class U>
__device__ inline void rank_each(const Weights<U>& weights, const PatternEntry& e, int64_t first, int64_t n, int64_t m, unsigned* nans) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const Strides& s = e.at;
  ACDC_ROLLED
  for (int64_t at = first + lane; at - lane < e.numel && at - lane < first + kTile; at += 32) {
    bool kept = false;
    if (at < e.numel) {
      const int64_t column = divide(at, s.kernel);  // of all outputs
      const int64_t output = divide(column, s.inputs), input = column - output * s.inputs, group = divide(input, m) * m;
      const U* p = static_cast<const U*>(e.data) + output * s.output + group * s.input + place_of(s, weights.layouts, at - column * s.kernel);
      const int64_t mine = input - group;
      const U key = weights.key(p[mine * s.input]);
      int64_t beaten = 0;
      for (int64_t j = 0; j < mine; ++j) beaten += weights.key(p[j * s.input]) >= key;
      for (int64_t j = mine + 1; j < m; ++j) beaten += weights.key(p[j * s.input]) > key;
      kept = beaten < n;
      *nans += key == weights.nan;
    }
    const uint32_t word = __ballot_sync(kAllLanes, kept);
    if (lane < 4 && at - lane + 8 * lane < e.numel) e.bits[(at - lane) / 8 + lane] = static_cast<uint8_t>(word >> (8 * lane));
  }
}

// A warp a tile. M is m, or 0 where groups are never ranked in registers.
template <int M, class U>
__global__ void __launch_bounds__(kSelectThreads, kBlocks<U>) rank(Weights<U> weights, int64_t tiles, int64_t n, int64_t m) {
  Cursor<Weights<U>> cursor(weights);
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kSelectWarps + threadIdx.x / 32; tile < tiles;
       tile += static_cast<int64_t>(gridDim.x) * kSelectWarps) {
    const int64_t first = cursor.move_to(tile);
    const PatternEntry& e = *cursor.entry;
    unsigned nans = 0;
    bool done = false;
    if constexpr (M > 0) {
      done = e.at.plain && e.at.kernel == 1;
      if (done) rank_eights<M>(weights, e, first, static_cast<int>(n), &nans);
    }
    if (!done) rank_each(weights, e, first, n, m, &nans);
    if (!__any_sync(kAllLanes, nans != 0)) continue;
    nans = __reduce_add_sync(kAllLanes, nans);
    if ((threadIdx.x & 31) == 0) atomicAdd(reinterpret_cast<Count*>(e.nan_count), Count{nans});
  }
}

template <class U>
cudaError_t n_m(const PatternCudaProblem& p, int64_t n, int64_t m, void* scratch, cudaStream_t stream) {
  const HostTables tables = tables_of(p);
  cudaError_t error = clear_nan_counts(p, stream);
  if (error != cudaSuccess || tables.entries.empty()) return error;
  Weights<U> weights{};
  weights.nan = rule_for<U>(p.dtype).nan;
  error = send(tables, scratch, &weights, stream);
  if (error != cudaSuccess) return error;
  const int64_t tiles = tables.entries.back().first_chunk + tiles_of(tables.entries.back().numel);
  auto kernel = m == 2 ? rank<2, U> : m == 4 ? rank<4, U> : m == 8 ? rank<8, U> : rank<0, U>;
  return ACDC_LAUNCH(kernel, grid_for((tiles + kSelectWarps - 1) / kSelectWarps, 4 * kBlocks<U>), kSelectThreads, stream, weights, tiles, n, m);
}

}  // namespace

bool make_pattern_weight(const TensorRef& t, uint8_t* bits, PatternWeight* weight) {
  *weight = {t.data, bits, t.numel, t.sizes[1], 1, t.strides[0], t.strides[1], {}, t.contiguous};
  for (int d = 2; d < t.dims; ++d) weight->kernel *= t.sizes[d];
  if (t.contiguous) {  // an axis of one element may have any stride
    weight->input_stride = weight->kernel;
    weight->output_stride = weight->inputs * weight->kernel;
    return true;
  }
  return make_layout({t.data, weight->kernel, t.sizes + 2, t.strides + 2, t.dims - 2, false}, &weight->places);
}

int64_t pattern_cuda_scratch_bytes(const PatternCudaProblem& problem) { return tables_of(problem).bytes(); }

cudaError_t n_m_mask_cuda(const PatternCudaProblem& problem, int64_t n, int64_t m, void* scratch, cudaStream_t stream) {
  switch (element_bytes(problem.dtype)) {
    case 8: return n_m<uint64_t>(problem, n, m, scratch, stream);
    case 4: return n_m<uint32_t>(problem, n, m, scratch, stream);
    default: return n_m<uint16_t>(problem, n, m, scratch, stream);
  }
}

}  // namespace acdc
