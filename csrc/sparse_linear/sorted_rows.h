// Device code: a block of threads sorts the rows of a panel and block, bundles them and says where their entries go.
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

// In memory that the block shares: rows by falling count, ties in order.
struct Sorted {
  uint16_t count[kLargestPanel];
  int16_t row[kLargestPanel], stand[kLargestPanel];  // row[stand[r]] is r
  // For rows that keep kLargestBlock - i. `next` is their number at first.
  int32_t next[kLargestBlock + 1], stands[kLargestBlock + 1], entries[kLargestBlock + 1];  // stands and entries of all rows before them
};

// Then set_count for every row, by any thread, then sort_rows.
__device__ inline void clear(Sorted& s) {
  for (int i = static_cast<int>(threadIdx.x); i <= kLargestBlock; i += static_cast<int>(blockDim.x)) s.next[i] = 0;
  __syncthreads();
}

__device__ inline void set_count(Sorted& s, int row, int count) {
  s.count[row] = static_cast<uint16_t>(count);
  atomicAdd(&s.next[kLargestBlock - count], 1);
}

__device__ inline void sort_rows(Sorted& s, int rows) {
  __syncthreads();
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x);
    uint64_t before = 0;  // rows, and in the low half entries
    for (int i = lane; i - lane <= kLargestBlock; i += 32) {
      const uint64_t n = i <= kLargestBlock ? static_cast<uint64_t>(s.next[i]) : 0;
      const uint64_t mine = n << 32 | n * static_cast<uint64_t>(kLargestBlock - i), up = before + sum_up_to(mine);
      if (i <= kLargestBlock) {
        s.next[i] = s.stands[i] = static_cast<int32_t>((up - mine) >> 32);
        s.entries[i] = static_cast<int32_t>(up - mine);
      }
      before = __shfl_sync(kAllLanes, up, 31);
    }
    __syncwarp();
    for (int r = lane; r - lane < rows; r += 32) {
      const int key = r < rows ? kLargestBlock - s.count[r] : -1;
      const unsigned same = __match_any_sync(kAllLanes, key);
      const int earlier = __popc(same & ((1u << lane) - 1));
      if (r < rows) {
        s.stand[r] = static_cast<int16_t>(s.next[key] + earlier);
        s.row[s.stand[r]] = static_cast<int16_t>(r);
      }
      __syncwarp();
      if (r < rows && earlier == 0) s.next[key] += __popc(same);
      __syncwarp();
    }
  }
  __syncthreads();
}

__device__ inline int count_at(const Sorted& s, int rows, int stand) { return stand < rows ? s.count[s.row[stand]] : 0; }

__device__ inline int entries_before(const Sorted& s, int stand) {
  const int count = s.count[s.row[stand]], i = kLargestBlock - count;
  return s.entries[i] + (stand - s.stands[i]) * count;
}

// Where a row's entries go within the cell: every `stride`-th from `at` for `steps` of them, then from `rest` on.
struct Cursor {
  int at, rest, steps, stride;

  __device__ int entry(int t) const { return t < steps ? at + t * stride : rest + t - steps; }
};

// kLanes: rows in a bundle; 1 where rows are groups of four.
template <int kLanes>
__device__ Cursor cursor_of(const Sorted& s, int rows, int row) {
  const int stand = s.stand[row];
  if (kLanes == 1) return {entries_before(s, stand), 0, s.count[row], 1};
  const int top = stand & ~3, steps = count_at(s, rows, top + 3), first = entries_before(s, top);
  int rest = first + 4 * steps;
  for (int i = top; i < stand; ++i) rest += s.count[s.row[i]] - steps;
  return {first + stand - top, rest, steps, 4};
}

template <int kLanes>
__device__ void write_bundles(const Sorted& s, int rows, int panel_rows, Bundle* bundles) {
  for (int j = static_cast<int>(threadIdx.x); kLanes * j < rows; j += static_cast<int>(blockDim.x)) {
    const int steps = count_at(s, rows, kLanes * j + kLanes - 1);
    uint32_t half[8];  // of a word
    for (int i = 0; i < 4; ++i) half[i] = static_cast<uint32_t>(kLanes == 1 ? 4 * s.row[j] + i : 4 * j + i < rows ? s.row[4 * j + i] : panel_rows);
    half[4] = static_cast<uint32_t>(steps);
    for (int i = 0; i < 3; ++i) half[5 + i] = static_cast<uint32_t>(kLanes == 1 ? 0 : count_at(s, rows, 4 * j + i) - steps);
    Bytes16 bundle;
    for (int i = 0; i < 4; ++i) bundle.word[i] = half[2 * i] | half[2 * i + 1] << 16;
    *reinterpret_cast<Bytes16*>(bundles + j) = bundle;
  }
}

}  // namespace acdc
