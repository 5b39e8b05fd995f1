#include <utility>

#include "topk/pattern_tables.h"
#include "topk/tile_masks.h"

namespace acdc {
namespace {

constexpr unsigned kTileThreads = block_threads(256);
constexpr int kTileBlocks = 3;  // on a multiprocessor: 80 registers

// What a block does at a time: tiles of one band of four rows, all kernel positions of some columns of tiles, or some of one column's.
struct Steps {
  int64_t columns, places;  // of a step, at most
  int64_t across, deep;     // steps across a band, and one behind another along the kernel positions
  __host__ __device__ explicit Steps(const Strides& s) {
    places = s.kernel < int64_t{kTileThreads} ? s.kernel : int64_t{kTileThreads};
    columns = static_cast<int>(kTileThreads) / static_cast<int>(places);
    across = divide(s.inputs / 4 + columns - 1, columns);
    deep = divide(s.kernel + places - 1, places);
  }
};

// One step: `columns` columns of tiles from `column` on, `places` kernel positions from `place` on.
struct Step {
  int64_t band, column, place;
  int columns, places;
  __device__ Step(const Strides& s, int64_t number) {
    const Steps all(s);
    const int64_t in = divide(number, all.deep), deep = number - in * all.deep;
    band = divide(in, all.across);
    column = (in - band * all.across) * all.columns;
    place = deep * all.places;
    columns = static_cast<int>(smaller(all.columns, s.inputs / 4 - column));
    places = static_cast<int>(smaller(all.places, s.kernel - place));
  }
  // The elements of a step lie in runs: its four rows, or one kernel's positions in each row and column of a tile.
  __device__ bool whole(const Strides& s) const { return places == s.kernel; }
  __device__ int runs(const Strides& s) const { return whole(s) ? 4 : 16; }
  __device__ int length(const Strides& s) const { return whole(s) ? 4 * columns * places : places; }
  __device__ int64_t begin(const Strides& s, int run) const {
    const int row = whole(s) ? run : run / 4, in_row = whole(s) ? 0 : run % 4;
    return (4 * band + row) * s.inputs * s.kernel + (4 * column + in_row) * s.kernel + place;
  }
};

// Clears the words within which a run ends, and so another begins: steps set their own bits there, and write all other words.
__global__ void clear_edges(PatternTable t, int64_t steps) {
  for (int64_t step = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; step < steps; step += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const PatternEntry& e = t.table[find_entry(t.table, t.entries, step)];
    const Step s(e.at, step - e.first_chunk);
    for (int run = 0; run < s.runs(e.at); ++run) {
      const int64_t end = s.begin(e.at, run) + s.length(e.at);
      if (end % 32) reinterpret_cast<uint32_t*>(e.bits)[end / 32] = 0;
    }
  }
}

struct Best {
  long long key;
  uint32_t mask;
};

constexpr long long kNoSign = 0x7fffffffffffffff;  // a NaN may have one

// Sums are positive or the one NaN, so that their bits order them as integers.
template <int I>
__device__ inline void consider(const double (&pair)[4][6], Best* best) {
  constexpr int a = kMasks.top[I] / 6, b = kMasks.top[I] % 6, c = kMasks.third[I], d = kMasks.fourth[I];
  constexpr uint32_t mask = kMasks.bits[I];
  const long long key = __double_as_longlong(__dadd_rn(__dadd_rn(__dadd_rn(pair[0][a], pair[1][b]), pair[2][c]), pair[3][d]));
  if ((key & kNoSign) > best->key) *best = {key & kNoSign, mask};
}

template <int... I>
__device__ inline uint32_t best_of(const double (&pair)[4][6], std::integer_sequence<int, I...>) {
  Best best{-1, 0};
  (consider<I>(pair, &best), ...);
  return best.mask;
}

// Four neighbours that begin on a multiple of their own size.
template <class U>
__device__ inline void load_four(const U* p, U (&u)[4]) {
  if constexpr (sizeof(U) == 2) {
    const uint64_t v = __ldg(reinterpret_cast<const unsigned long long*>(p));
    ACDC_UNROLLED
    for (int i = 0; i < 4; ++i) u[i] = static_cast<U>(v >> (16 * i));
  } else {
    Bytes16 v[sizeof(U) / 4];
    ACDC_UNROLLED
    for (int i = 0; i < static_cast<int>(sizeof(U) / 4); ++i) v[i] = load16(reinterpret_cast<const Bytes16*>(p) + i);
    ACDC_UNROLLED
    for (int i = 0; i < 4; ++i) u[i] = item<U>(v[i / kItems<U>], i % kItems<U>);
  }
}

// The best mask of one tile; adds its NaNs.
template <class U, bool kBf16>
__device__ inline uint32_t best_mask(const PatternTable& t, const PatternEntry& e, int64_t band, int64_t column, int64_t place, unsigned* nans) {
  const Strides& s = e.at;
  const U* p = static_cast<const U*>(e.data) + 4 * band * s.output + 4 * column * s.input + place_of(s, t.layouts, place);
  U u[4][4];
  if (s.plain && s.kernel == 1) {
    ACDC_UNROLLED
    for (int r = 0; r < 4; ++r) load_four(p + r * s.output, u[r]);
  } else {
    ACDC_UNROLLED
    for (int i = 0; i < 16; ++i) u[i / 4][i % 4] = p[i / 4 * s.output + i % 4 * s.input];
  }
  double pair[4][6];
  ACDC_UNROLLED
  for (int r = 0; r < 4; ++r) {
    double x[4];
    ACDC_UNROLLED
    for (int c = 0; c < 4; ++c) {
      x[c] = magnitude_of(u[r][c], kBf16);
      const bool nan = x[c] != x[c];
      *nans += nan;
      if (nan) x[c] = __longlong_as_double(0x7ff8000000000000ll);
    }
    int i = 0;  // as kPairs has them
    ACDC_UNROLLED
    for (int a = 0; a < 4; ++a) {
      ACDC_UNROLLED
      for (int b = a + 1; b < 4; ++b) pair[r][i++] = __dadd_rn(x[a], x[b]);
    }
  }
  return best_of(pair, std::make_integer_sequence<int, kTileMasks>());
}

struct StepMasks {
  uint16_t of[kTileThreads];
};

// A thread a tile; then a warp a word of bits.
template <class U, bool kBf16>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks) choose_masks(PatternTable t, int64_t steps) {
  ACDC_SHARED(StepMasks, masks);
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31;
  for (int64_t number = blockIdx.x; number < steps; number += gridDim.x) {
    const PatternEntry& e = t.table[find_entry(t.table, t.entries, number)];
    const Step step(e.at, number - e.first_chunk);
    unsigned nans = 0;
    __syncthreads();
    if (thread < step.columns * step.places) {
      const int column = thread / step.places, place = thread - column * step.places;
      masks.of[thread] = static_cast<uint16_t>(best_mask<U, kBf16>(t, e, step.band, step.column + column, step.place + place, &nans));
    }
    if (__any_sync(kAllLanes, nans != 0)) {
      nans = __reduce_add_sync(kAllLanes, nans);
      if (lane == 0) atomicAdd(reinterpret_cast<Count*>(e.nan_count), Count{nans});
    }
    __syncthreads();
    const bool whole = step.whole(e.at);
    const int length = step.length(e.at), words = length / 32 + 2;
    for (int i = thread / 32; i < words * step.runs(e.at); i += static_cast<int>(kTileThreads / 32)) {
      const int run = i / words, w = i - run * words;
      const int64_t begin = step.begin(e.at, run), first = (begin & ~int64_t{31}) + 32 * w;
      const int x = static_cast<int>(first - begin) + lane;  // in the run
      if (first >= begin + length) continue;
      bool kept = false;
      if (x >= 0 && x < length) {
        const int column = whole ? x / step.places : 0, place = x - column * step.places;
        const int bit = whole ? 4 * run + column % 4 : run;
        kept = masks.of[column / 4 * step.places + place] >> bit & 1;
      }
      const uint32_t word = __ballot_sync(kAllLanes, kept);
      if (lane != 0) continue;
      if (first >= begin && first + 32 <= begin + length)
        reinterpret_cast<uint32_t*>(e.bits)[first / 32] = word;
      else if (word != 0)
        set_bits(e.bits, first, word);
    }
  }
}

template <class U, bool kBf16 = false>
cudaError_t choose(const PatternCudaProblem& p, void* scratch, cudaStream_t stream) {
  HostTables tables = tables_of(p);
  cudaError_t error = clear_nan_counts(p, stream);
  if (error != cudaSuccess || tables.entries.empty()) return error;
  int64_t steps = 0;
  bool edges = false;
  for (PatternEntry& e : tables.entries) {
    const Steps each(e.at);
    const int64_t row = e.at.inputs * e.at.kernel;
    e.first_chunk = steps;
    steps += e.numel / row / 4 * each.across * each.deep;
    edges |= row % 32 != 0 || (each.across > 1 && 4 * each.columns * each.places % 32 != 0) || each.deep > 1;
  }
  PatternTable t;
  error = send(tables, scratch, &t, stream);
  if (error == cudaSuccess && edges) error = ACDC_LAUNCH(clear_edges, grid_for((steps + kTileThreads - 1) / kTileThreads, 8), kTileThreads, stream, t, steps);
  auto kernel = choose_masks<U, kBf16>;
  if (error == cudaSuccess) error = ACDC_LAUNCH(kernel, grid_for(steps, 2 * kTileBlocks), kTileThreads, stream, t, steps);
  return error;
}

}  // namespace

cudaError_t transposable_mask_cuda(const PatternCudaProblem& problem, void* scratch, cudaStream_t stream) {
  switch (problem.dtype) {
    case DType::f64: return choose<uint64_t>(problem, scratch, stream);
    case DType::f32: return choose<uint32_t>(problem, scratch, stream);
    case DType::bf16: return choose<uint16_t, true>(problem, scratch, stream);
    default: return choose<uint16_t>(problem, scratch, stream);
  }
}

}  // namespace acdc
