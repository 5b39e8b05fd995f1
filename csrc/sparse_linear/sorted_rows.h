// Device code: a block of threads sorts the rows of a panel and block, bundles them, and says where their entries go.
#pragma once
#include "common/cuda.h"
#include "sparse_linear/bundles.h"

namespace acdc {

// The sum over this lane and those below it, of `width` lanes.
template <class T>
__device__ T sum_up_to(T mine, int width = 32) {
  const int lane = static_cast<int>(threadIdx.x) & (width - 1);
  for (int d = 1; d < width; d *= 2) {
    const T other = __shfl_up_sync(kAllLanes, mine, static_cast<unsigned>(d), width);
    if (lane >= d) mine += other;
  }
  return mine;
}

// What the block shares.
struct SortedRows {
  uint16_t count[kLargestPanel];
  int16_t row[kLargestPanel], stand[kLargestPanel];  // rows by falling count, ties in order; row[stand[r]] is r
  // For rows that keep most - i. `next` is how many there are, then where the next one stands.
  int32_t next[kLargestBlock + 1], stands[kLargestBlock + 1], entries[kLargestBlock + 1];  // stands and entries of all rows before them
};

// Where a row's entries go within the cell: every `stride`-th from `at` for `steps` of them, then from `rest` on.
struct Cursor {
  int at, rest, steps, stride;

  __device__ int entry(int t) const { return t < steps ? at + t * stride : rest + t - steps; }
};

// kLanes: rows in a bundle; 1 where rows are groups of four. Made by all threads; then set_count once for every row, then sort.
template <int kLanes>
class RowSort {
 public:
  // Rows keep at most `most` columns.
  __device__ RowSort(SortedRows& shared, int rows, int most) : s_(shared), rows_(rows), most_(most) {
    for (int i = static_cast<int>(threadIdx.x); i <= most; i += static_cast<int>(blockDim.x)) s_.next[i] = 0;
    __syncthreads();
  }

  __device__ void set_count(int row, int count) {
    s_.count[row] = static_cast<uint16_t>(count);
    atomicAdd(&s_.next[most_ - count], 1);
  }

  __device__ void sort() {
    __syncthreads();
    if (threadIdx.x < 32) {
      sum_counts();
      __syncwarp();
      sort_by_count();
    }
    __syncthreads();
  }

  __device__ Cursor cursor_of(int row) const {
    const int stand = s_.stand[row];
    if (kLanes == 1) return {entries_before(stand), 0, s_.count[row], 1};
    const int top = stand & ~3, steps = count_at(top + 3), first = entries_before(top);
    int rest = first + 4 * steps;
    for (int i = top; i < stand; ++i) rest += count_at(i) - steps;
    return {first + stand - top, rest, steps, 4};
  }

  __device__ void write(int panel_rows, Bundle* bundles) const {
    for (int j = static_cast<int>(threadIdx.x); kLanes * j < rows_; j += static_cast<int>(blockDim.x)) {
      const int steps = count_at(kLanes * j + kLanes - 1);
      uint32_t half[8];  // of a word
      for (int i = 0; i < 4; ++i) half[i] = static_cast<uint32_t>(kLanes == 1 ? 4 * s_.row[j] + i : 4 * j + i < rows_ ? s_.row[4 * j + i] : panel_rows);
      half[4] = static_cast<uint32_t>(steps);
      for (int i = 0; i < 3; ++i) half[5 + i] = static_cast<uint32_t>(kLanes == 1 ? 0 : count_at(4 * j + i) - steps);
      Bytes16 bundle;
      for (int i = 0; i < 4; ++i) bundle.word[i] = half[2 * i] | half[2 * i + 1] << 16;
      *reinterpret_cast<Bytes16*>(bundles + j) = bundle;
    }
  }

 private:
  __device__ int count_at(int stand) const { return stand < rows_ ? s_.count[s_.row[stand]] : 0; }

  __device__ int entries_before(int stand) const {
    const int count = count_at(stand), i = most_ - count;
    return s_.entries[i] + (stand - s_.stands[i]) * count;
  }

  // Both by the first warp.
  __device__ void sum_counts() {
    const int lane = static_cast<int>(threadIdx.x);
    uint64_t before = 0;  // rows, and in the low half entries
    for (int i = lane; i - lane <= most_; i += 32) {
      const uint64_t rows = i <= most_ ? static_cast<uint64_t>(s_.next[i]) : 0;
      const uint64_t mine = i <= most_ ? rows << 32 | rows * static_cast<uint64_t>(most_ - i) : 0, up = before + sum_up_to(mine);
      if (i <= most_) {
        s_.next[i] = s_.stands[i] = static_cast<int32_t>((up - mine) >> 32);
        s_.entries[i] = static_cast<int32_t>((up - mine) & 0xffffffffu);
      }
      before = __shfl_sync(kAllLanes, up, 31);
    }
  }

  __device__ void sort_by_count() {
    const int lane = static_cast<int>(threadIdx.x);
    for (int r = lane; r - lane < rows_; r += 32) {
      const int i = r < rows_ ? most_ - s_.count[r] : -1;
      const unsigned same = __match_any_sync(kAllLanes, i);
      const int earlier = __popc(same & ((1u << lane) - 1));
      if (r < rows_) {
        const int stand = s_.next[i] + earlier;
        s_.stand[r] = static_cast<int16_t>(stand);
        s_.row[stand] = static_cast<int16_t>(r);
      }
      __syncwarp();
      if (r < rows_ && earlier == 0) s_.next[i] += __popc(same);
      __syncwarp();
    }
  }

  SortedRows& s_;
  int rows_, most_;
};

}  // namespace acdc
