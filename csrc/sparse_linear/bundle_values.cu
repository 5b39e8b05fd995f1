#include "sparse_linear/bundles_cuda.h"
#include "sparse_linear/device_mask.h"

namespace acdc {
namespace {

constexpr int kPiece = 1024;     // elements that a warp moves at a time: a word of the mask a lane
constexpr int kPieces = kRankElements / kPiece;
constexpr int kInFlight = 4;     // elements that a lane waits for at a time

template <class T>
constexpr unsigned kThreads = block_threads(sizeof(T) == 8 ? 128 : 256);

struct Moved {
  DeviceMask mask;
  const int64_t* rank;
  const int32_t* position;
  int64_t cols, elements, kept;
};

// Not a number in float64, float32, bfloat16 and float16.
template <class T>
__device__ T not_a_number() {
  return static_cast<T>(static_cast<T>(~T{0}) >> 1);
}

__device__ int lane_of() { return static_cast<int>(threadIdx.x & 31); }

// What a warp knows of the elements from piece * kPiece on.
struct Piece {
  uint32_t word;  // the lane's 32 of them
  int before;     // how many the piece keeps before those
  int kept;
  int64_t first;  // kept elements before the piece
  bool same;      // the run of 4096 around it keeps as many as when the index was built
};

__device__ Piece read_piece(const Moved& m, int64_t piece) {
  const int64_t run = piece / kPieces, begin = m.rank[run], end = m.rank[run + 1];
  const int part = static_cast<int>(piece % kPieces), lane = lane_of();
  const int64_t first = run * kRankElements + 32 * lane;
  uint32_t word[kPieces];
  Piece p;
  if (m.mask.words() && (run + 1) * kRankElements <= m.elements) {  // all loads at once
    const uint32_t* words = m.mask.words() + first / 32;
    for (int i = 0; i < kPieces; ++i) word[i] = words[i * (kPiece / 32)];
    p.word = words[part * (kPiece / 32)];
  } else {
    for (int i = 0; i < kPieces; ++i) word[i] = m.mask.at(first + i * kPiece, m.elements);
    p.word = m.mask.at(first + part * kPiece, m.elements);
  }
  unsigned earlier = 0, all = 0;
  for (int i = 0; i < kPieces; ++i) {
    const unsigned n = static_cast<unsigned>(__popc(word[i]));
    all += n;
    earlier += i < part ? n : 0;
  }
  const int mine = __popc(p.word);
  int up = mine;
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(kAllLanes, up, static_cast<unsigned>(d));
    if (lane >= d) up += other;
  }
  p.before = up - mine;
  p.kept = __shfl_sync(kAllLanes, up, 31);
  p.first = begin + __reduce_add_sync(kAllLanes, earlier);
  p.same = end - begin == static_cast<int64_t>(__reduce_add_sync(kAllLanes, all)) && begin >= 0 && end <= m.kept;
  return p;
}

// Where the elements of a piece lie in a weight of any strides.
struct Rows {
  int64_t row, col, cols;  // of the first

  __device__ Rows(int64_t element, int64_t all_cols) : row(element / all_cols), col(element - row * all_cols), cols(all_cols) {}

  __device__ int64_t offset(int i, int64_t row_stride, int64_t col_stride) const {
    int64_t r = row, c = col + i;
    if (c >= cols) {
      const uint32_t more = cols >= kPiece ? 1 : static_cast<uint32_t>(c) / static_cast<uint32_t>(cols);
      r += more;
      c -= more * cols;
    }
    return r * row_stride + c * col_stride;
  }
};

// What a block of kThreads<T> shares: of each warp's piece, something of every kept element.
template <class T, class Item>
struct Lists {
  Item of[kThreads<T> / 32][kPiece];
};

// The run's values by the index, for its first piece's warp to write.
template <class T>
__device__ void poison_run(const Moved& m, int64_t run, T* values) {
  const int64_t begin = m.rank[run] < 0 ? 0 : m.rank[run], end = m.rank[run + 1] < m.kept ? m.rank[run + 1] : m.kept;
  for (int64_t k = begin + lane_of(); k < end; k += 32) {
    const uint32_t place = static_cast<uint32_t>(m.position[k]);
    if (place < m.kept) values[place] = not_a_number<T>();
  }
}

template <class T, bool kContiguous>
__global__ void __launch_bounds__(kThreads<T>) gather(ACDC_CONSTANT(Moved) m, const T* weight, int64_t row_stride, int64_t col_stride, T* values) {
  using Indices = Lists<T, uint16_t>;
  ACDC_SHARED(Indices, lists);
  const int64_t pieces = (m.elements + kPiece - 1) / kPiece, warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
  const int lane = lane_of();
  uint16_t* list = lists.of[threadIdx.x / 32];
  for (int64_t piece = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; piece < pieces; piece += warps) {
    const Piece p = read_piece(m, piece);
    if (!p.same) {
      if (piece % kPieces == 0) poison_run(m, piece / kPieces, values);
      continue;
    }
    int at = p.before;
    for (uint32_t left = p.word; left; left &= left - 1) list[at++] = static_cast<uint16_t>(32 * lane + __ffs(static_cast<int>(left)) - 1);
    __syncwarp();
    const int64_t begin = piece * kPiece;
    const Rows rows(kContiguous ? 0 : begin, kContiguous ? 1 : m.cols);
    for (int t = lane; t < p.kept; t += 32 * kInFlight) {
      T value[kInFlight];
      uint32_t place[kInFlight];
      for (int i = 0; i < kInFlight; ++i) {
        place[i] = ~0u;
        if (t + 32 * i >= p.kept) continue;
        const int e = list[t + 32 * i];
        place[i] = static_cast<uint32_t>(m.position[p.first + t + 32 * i]);
        value[i] = weight[kContiguous ? begin + e : rows.offset(e, row_stride, col_stride)];
      }
      for (int i = 0; i < kInFlight; ++i)
        if (place[i] < m.kept) values[place[i]] = value[i];
    }
    __syncwarp();
  }
}

template <class T>
struct alignas(16) Several {
  T of[16 / sizeof(T)];
};

template <class T>
__global__ void __launch_bounds__(kThreads<T>) scatter(ACDC_CONSTANT(Moved) m, const T* values, T* weight) {
  constexpr int kEach = 16 / sizeof(T);
  using Values = Lists<T, T>;
  ACDC_SHARED(Values, lists);
  const int64_t pieces = (m.elements + kPiece - 1) / kPiece, warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
  const int lane = lane_of();
  T* list = lists.of[threadIdx.x / 32];
  for (int64_t piece = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; piece < pieces; piece += warps) {
    const Piece p = read_piece(m, piece);
    for (int t = lane; t < p.kept; t += 32 * kInFlight) {
      uint32_t place[kInFlight];
      T value[kInFlight];
      for (int i = 0; i < kInFlight; ++i) place[i] = p.same && t + 32 * i < p.kept ? static_cast<uint32_t>(m.position[p.first + t + 32 * i]) : ~0u;
      for (int i = 0; i < kInFlight; ++i) value[i] = place[i] < m.kept ? values[place[i]] : not_a_number<T>();
      for (int i = 0; i < kInFlight; ++i)
        if (t + 32 * i < p.kept) list[t + 32 * i] = value[i];
    }
    __syncwarp();
    T* out = weight + piece * kPiece;
    const int64_t left = m.elements - piece * kPiece;
    // The lane writes n elements from e on, all in one word of the mask: element i is list[at] or zero.
    if (left >= kPiece && is_aligned16(out)) {
      for (int e = kEach * lane; e < kPiece; e += kEach * 32) {
        const uint32_t word = __shfl_sync(kAllLanes, p.word, e / 32), bits = word >> e % 32;
        int at = __shfl_sync(kAllLanes, p.before, e / 32) + __popc(word & ((1u << e % 32) - 1));
        Several<T> several;
        for (int i = 0; i < kEach; ++i) several.of[i] = bits >> i & 1 ? list[at++] : T{0};
        *reinterpret_cast<Several<T>*>(out + e) = several;
      }
    } else {
      for (int e = lane; e < kPiece; e += 32) {
        const uint32_t word = __shfl_sync(kAllLanes, p.word, e / 32);
        const int at = __shfl_sync(kAllLanes, p.before, e / 32) + __popc(word & ((1u << lane) - 1));
        if (e < left) out[e] = word >> lane & 1 ? list[at] : T{0};
      }
    }
    __syncwarp();
  }
}

Moved moved(const ValuePlaces& p) { return {DeviceMask(p.bits, p.rows * p.cols), p.rank, p.position, p.cols, p.rows * p.cols, p.kept}; }

template <class T>
unsigned blocks_for(int64_t elements) {
  constexpr int64_t per_block = kPiece * (kThreads<T> / 32);
  return grid_for((elements + per_block - 1) / per_block, 2048 / kThreads<T>);
}

template <class F>
cudaError_t by_width(int bytes, const F& run) {
  return bytes == 2 ? run(uint16_t{}) : bytes == 4 ? run(uint32_t{}) : run(uint64_t{});
}

}  // namespace

cudaError_t gather_values_cuda(const void* weight, int64_t row_stride, int64_t col_stride, const ValuePlaces& places, int bytes, void* values,
                               cudaStream_t stream) {
  const Moved m = moved(places);
  if (m.elements == 0 || m.kept == 0) return cudaSuccess;
  return by_width(bytes, [&](auto element) {
    using T = decltype(element);
    const bool contiguous = (places.cols == 1 || col_stride == 1) && (places.rows == 1 || row_stride == places.cols);
    auto kernel = contiguous ? gather<T, true> : gather<T, false>;
    return ACDC_LAUNCH(kernel, blocks_for<T>(m.elements), kThreads<T>, stream, m, static_cast<const T*>(weight), row_stride, col_stride,
                       static_cast<T*>(values));
  });
}

cudaError_t scatter_values_cuda(const void* values, const ValuePlaces& places, int bytes, void* weight, cudaStream_t stream) {
  const Moved m = moved(places);
  if (m.elements == 0) return cudaSuccess;
  return by_width(bytes, [&](auto element) {
    using T = decltype(element);
    auto kernel = scatter<T>;
    return ACDC_LAUNCH(kernel, blocks_for<T>(m.elements), kThreads<T>, stream, m, static_cast<const T*>(values), static_cast<T*>(weight));
  });
}

}  // namespace acdc
