#include "sparse_linear/bundles_cuda.h"
#include "sparse_linear/device_mask.h"
#include "sparse_linear/sorted_rows.h"

namespace acdc {
namespace {

constexpr unsigned kThreads = block_threads(512);
constexpr int kHalf = 16;  // lanes that read the columns of a block: a word each
static_assert(kHalf * 32 == kLargestBlock, "half a warp reads a row of a block");

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__device__ inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// What the kernels of a build take. Groups of `group` rows keep the same columns; the first row stands for them.
struct Build {
  DeviceMask mask;
  BundleIndex index;
  uint16_t* rank_of_word;  // kept elements before every 32nd, from the last 4096th on
  int group;

  // All kept elements before one.
  __device__ int64_t kept_before(int64_t element) const {
    return index.rank[element / kRankElements] + rank_of_word[element / 32] + __popc(mask.at(element & ~int64_t{31}, element));
  }
};

// A part of one side.
struct Cell {
  int64_t top, bottom, left, right;  // rows and columns of the weight
};

__host__ __device__ inline int64_t row_cells(const BundleIndex& x) { return ceil_div(x.rows, x.panel_rows) * ceil_div(x.cols, x.block_cols); }
__host__ __device__ inline int64_t column_cells(const BundleIndex& x) { return ceil_div(x.cols, x.t_panel_rows) * ceil_div(x.rows, x.t_block_cols); }

// The part of `length` things that is the i-th of `size`.
__device__ inline void part_of(int64_t length, int64_t size, int64_t i, int64_t* begin, int64_t* end) {
  *begin = i * size;
  *end = smaller(length, *begin + size);
}

__device__ Cell row_cell(const BundleIndex& x, int64_t i) {
  const int64_t blocks = ceil_div(x.cols, x.block_cols), panel = i / blocks;
  Cell c;
  part_of(x.rows, x.panel_rows, panel, &c.top, &c.bottom);
  part_of(x.cols, x.block_cols, i - panel * blocks, &c.left, &c.right);
  return c;
}

__device__ Cell column_cell(const BundleIndex& x, int64_t i) {
  const int64_t blocks = ceil_div(x.rows, x.t_block_cols), panel = i / blocks;
  Cell c;
  part_of(x.cols, x.t_panel_rows, panel, &c.left, &c.right);
  part_of(x.rows, x.t_block_cols, i - panel * blocks, &c.top, &c.bottom);
  return c;
}

// A warp counts 4096 elements: rank[i + 1] is their number for now, rank_of_word is final.
__global__ void __launch_bounds__(kThreads) count_runs(ACDC_CONSTANT(Build) b) {
  const int64_t n = b.index.rows * b.index.cols, runs = ceil_div(n, kRankElements), words = ceil_div(n, 32), per_block = blockDim.x / 32;
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (int64_t run = blockIdx.x * per_block + threadIdx.x / 32; run < runs; run += gridDim.x * per_block) {
    const int64_t first = run * (kRankElements / 32) + 4 * lane;  // of the lane's four words
    int count[4], mine = 0;
    for (int i = 0; i < 4; ++i) mine += count[i] = __popc(b.mask.at(32 * (first + i), n));
    const int all = sum_up_to(mine);
    if (lane == 31) b.index.rank[run + 1] = all;
    for (int i = 0, before = all - mine; i < 4; before += count[i++])
      if (first + i < words) b.rank_of_word[first + i] = static_cast<uint16_t>(before);
  }
}

// starts[i + 1] and t_starts[i + 1] are what cell i has, for now.
__global__ void __launch_bounds__(kThreads) count_cells(ACDC_CONSTANT(Build) b) {
  ACDC_SHARED(unsigned, sum);
  const int64_t cells = row_cells(b.index), all = cells + column_cells(b.index);
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    const Cell c = i < cells ? row_cell(b.index, i) : column_cell(b.index, i - cells);
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    const int words = static_cast<int>(ceil_div(c.right - c.left, 32)), items = static_cast<int>(ceil_div(c.bottom - c.top, b.group)) * words;
    unsigned n = 0;
    for (int k = static_cast<int>(threadIdx.x); k < items; k += static_cast<int>(blockDim.x)) {
      const int row = k / words;
      const int64_t begin = (c.top + row * b.group) * b.index.cols;
      n += static_cast<unsigned>(__popc(b.mask.at(begin + c.left + 32 * (k - row * words), begin + c.right)));
    }
    n = __reduce_add_sync(kAllLanes, n);
    if ((threadIdx.x & 31) == 0) atomicAdd(&sum, n);
    __syncthreads();
    if (threadIdx.x == 0) *(i < cells ? b.index.starts + i + 1 : b.index.t_starts + (i - cells) + 1) = i < cells ? sum * b.group : sum;
  }
}

struct Counts {
  int64_t* of[3];
  int64_t size[3];
};

// A block an array: of[0] is 0, and of[i + 1] becomes the sum of all up to it.
__global__ void __launch_bounds__(kThreads) sum_counts(ACDC_CONSTANT(Counts) counts) {
  using Sums = int64_t[kThreads / 32];
  ACDC_SHARED(Sums, warp_sums);
  constexpr int kEach = 4;
  int64_t* out = counts.of[blockIdx.x];
  const int64_t size = counts.size[blockIdx.x];
  const unsigned warp = threadIdx.x / 32;
  if (threadIdx.x == 0) out[0] = 0;
  int64_t before = 0;
  for (int64_t base = 0; base < size; base += blockDim.x * kEach) {
    const int64_t first = base + threadIdx.x * kEach;
    int64_t count[kEach], mine = 0;
    for (int i = 0; i < kEach; ++i) mine += count[i] = first + i < size ? out[1 + first + i] : 0;
    const int64_t up = sum_up_to(mine);
    if ((threadIdx.x & 31) == 31) warp_sums[warp] = up;
    __syncthreads();
    int64_t sum = before + up - mine;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) {
      if (w < warp) sum += warp_sums[w];
      before += warp_sums[w];
    }
    for (int i = 0; i < kEach; ++i) {
      sum += count[i];
      if (first + i < size) out[1 + first + i] = sum;
    }
    __syncthreads();
  }
}

// A warp's 32 words turned: bit j of lane i <-> bit i of lane j, in steps that swap squares of `half` bits.
__device__ uint32_t transpose(uint32_t word) {
  uint32_t low = 0xffff;
  for (unsigned half = 16; half; half /= 2, low ^= low << half) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, word, static_cast<int>(half));
    word = threadIdx.x & half ? (word & ~low) | (other >> half & low) : (word & low) | (other & low) << half;
  }
  return word;
}

// A block a cell; half a warp a row.
template <int kGroup>
__global__ void __launch_bounds__(kThreads) rows_side(ACDC_CONSTANT(Build) b) {
  ACDC_SHARED(SortedRows, shared);
  constexpr int kLanes = kGroup == 1 ? 4 : 1;
  const BundleIndex& x = b.index;
  const int word = static_cast<int>(threadIdx.x % kHalf), mine = static_cast<int>(threadIdx.x / kHalf), halves = static_cast<int>(blockDim.x / kHalf);
  const int64_t cells = row_cells(x), blocks = ceil_div(x.cols, x.block_cols);
  for (int64_t i = blockIdx.x; i < cells; i += gridDim.x) {
    const Cell c = row_cell(x, i);
    const int rows = static_cast<int>(c.bottom - c.top), groups = rows / kGroup;
    RowSort<kLanes> sorted(shared, groups, x.block_cols);
    for (int base = 0; base < groups; base += halves) {
      const int group = base + mine;
      const int64_t begin = (c.top + group * kGroup) * x.cols;
      int count = group < groups ? __popc(b.mask.at(begin + c.left + 32 * word, begin + c.right)) : 0;
      for (int d = kHalf / 2; d; d /= 2) count += __shfl_xor_sync(kAllLanes, count, d, kHalf);
      if (group < groups && word == 0) sorted.set_count(group, count);
    }
    sorted.sort();
    const int64_t panel = i / blocks, bundles = ceil_div(rows, 4), start = x.starts[i] / kGroup;
    sorted.write(x.panel_rows, x.bundles + panel * (x.panel_rows / 4) * blocks + (i - panel * blocks) * bundles);
    for (int base = 0; base < rows; base += halves) {
      const int row = base + mine;
      const int64_t begin = (c.top + row) * x.cols;
      uint32_t left = row < rows ? b.mask.at(begin + c.left + 32 * word, begin + c.right) : 0;
      const int n = __popc(left);
      int t = sum_up_to(n, kHalf) - n;
      if (!left) continue;
      const Cursor cursor = sorted.cursor_of(row / kGroup);
      for (int64_t k = b.kept_before(begin + c.left) + t; left; left &= left - 1, ++k, ++t) {
        const int64_t entry = start + cursor.entry(t), place = kGroup * entry + row % kGroup;
        if (k >= x.kept || place >= x.kept) break;  // another number of kept elements, or groups that differ
        x.position[k] = static_cast<int32_t>(place);
        if (row % kGroup == 0) x.offsets[entry] = static_cast<int16_t>((32 * word + __ffs(static_cast<int>(left)) - 1) * kOffsetUnit);
      }
    }
    __syncthreads();
  }
}

// 32 (groups of) rows: their next 32 columns, and the kept elements before those.
struct Square {
  uint32_t word[32];
  int64_t kept_before[32];
};

// A block a cell; a warp 32 columns, of which each lane has one. Needs the rows side's positions.
template <int kGroup>
__global__ void __launch_bounds__(kThreads) columns_side(ACDC_CONSTANT(Build) b) {
  using Squares = Square[kThreads / 32];
  ACDC_SHARED(SortedRows, shared);
  ACDC_SHARED(Squares, squares);
  const BundleIndex& x = b.index;
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32), warps = static_cast<int>(blockDim.x / 32);
  Square& square = squares[warp];
  const int64_t cells = column_cells(x), blocks = ceil_div(x.rows, x.t_block_cols), entries = x.kept / kGroup;
  for (int64_t i = blockIdx.x; i < cells; i += gridDim.x) {
    const Cell c = column_cell(x, i);
    const int columns = static_cast<int>(c.right - c.left), groups = static_cast<int>((c.bottom - c.top) / kGroup);
    // The bit of the lane's group before `column` of the cell, in group `first + lane`; the row's end in the cell if there is no such group.
    const auto begin_of = [&](int first, int column) {
      const int64_t row = (c.top + (first + lane) * kGroup) * x.cols;
      return row + (first + lane < groups ? c.left + column : c.right);
    };
    const auto end_of = [&](int first) { return (c.top + (first + lane) * kGroup) * x.cols + c.right; };
    RowSort<4> sorted(shared, columns, x.t_block_cols / kGroup);
    for (int column = 32 * warp; column < columns; column += 32 * warps) {
      int count = 0;
      for (int first = 0; first < groups; first += 32) count += __popc(transpose(b.mask.at(begin_of(first, column), end_of(first))));
      if (column + lane < columns) sorted.set_count(column + lane, count);
    }
    sorted.sort();
    const int64_t panel = i / blocks, bundles = ceil_div(columns, 4), start = x.t_starts[i];
    sorted.write(x.t_panel_rows, x.t_bundles + panel * (x.t_panel_rows / 4) * blocks + (i - panel * blocks) * bundles);
    for (int column = 32 * warp; column < columns; column += 32 * warps) {
      const Cursor cursor = column + lane < columns ? sorted.cursor_of(column + lane) : Cursor{};
      for (int first = 0, t = 0; first < groups; first += 32) {
        const int64_t begin = begin_of(first, column);
        square.word[lane] = b.mask.at(begin, end_of(first));
        square.kept_before[lane] = first + lane < groups ? b.kept_before(begin) : 0;
        __syncwarp();
        for (uint32_t left = transpose(square.word[lane]); left; left &= left - 1, ++t) {
          const int group = __ffs(static_cast<int>(left)) - 1;
          const int64_t k = square.kept_before[group] + __popc(square.word[group] & ((1u << lane) - 1)), entry = start + cursor.entry(t);
          if (k >= x.kept || entry >= entries) continue;  // another number of kept elements, or groups that differ
          x.t_offsets[entry] = static_cast<int16_t>((first + group) * kGroup * kOffsetUnit);
          x.t_permutation[entry] = x.position[k] / kGroup;
        }
        __syncwarp();
      }
    }
    __syncthreads();
  }
}

template <int kGroup>
cudaError_t build(const Build& b, cudaStream_t stream) {
  const BundleIndex& x = b.index;
  const int64_t runs = ceil_div(x.rows * x.cols, kRankElements), cells = row_cells(x), t_cells = column_cells(x);
  cudaError_t error = cudaSuccess;
  if (runs > 0) {
    error = ACDC_LAUNCH(count_runs, grid_for(ceil_div(runs, kThreads / 32), 4), kThreads, stream, b);
    if (error == cudaSuccess) error = ACDC_LAUNCH(count_cells, grid_for(cells + t_cells, 4), kThreads, stream, b);
  }
  const Counts counts{{x.rank, x.starts, x.t_starts}, {runs, cells, t_cells}};
  if (error == cudaSuccess) error = ACDC_LAUNCH(sum_counts, 3, kThreads, stream, counts);
  if (runs > 0) {
    auto rows = rows_side<kGroup>;
    auto columns = columns_side<kGroup>;
    if (error == cudaSuccess) error = ACDC_LAUNCH(rows, grid_for(cells, 4), kThreads, stream, b);
    if (error == cudaSuccess) error = ACDC_LAUNCH(columns, grid_for(t_cells, 4), kThreads, stream, b);
  }
  return error;
}

}  // namespace

int64_t build_bundles_scratch(int64_t rows, int64_t cols) { return ceil_div(rows * cols, 32) * 2; }

cudaError_t build_bundles_cuda(const uint8_t* bits, const BundleIndex& index, void* scratch, cudaStream_t stream) {
  const bool grouped = index.format == BundleFormat::block4x1;
  const Build b{DeviceMask(bits, index.rows * index.cols), index, static_cast<uint16_t*>(scratch), grouped ? 4 : 1};
  return grouped ? build<4>(b, stream) : build<1>(b, stream);
}

}  // namespace acdc
