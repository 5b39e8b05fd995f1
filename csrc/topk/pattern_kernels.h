// The inner loops of the structured patterns, one table an ISA level. U is the unsigned integer as wide as the element.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "topk/topk_kernels.h"

namespace acdc {

template <class U>
struct GroupLoops {
  // Bits of the n largest keys of every m (2, 4 or 8) elements; of equal keys the first. `count` is a multiple of m; (count + 7) / 8
  // bytes are written. *largest accumulates the largest key.
  void (*consecutive)(const U* p, int64_t count, KeyRule<U> rule, int n, int m, uint8_t* bits, U* largest);
  // The same where a group's elements are `stride` apart: runs of m * stride elements hold `stride` groups each. `count` is a multiple
  // of m * stride, and m * stride <= kMaxRun.
  void (*strided)(const U* p, int64_t count, int64_t stride, KeyRule<U> rule, int n, int m, uint8_t* bits, U* largest);
};

constexpr int64_t kMaxRun = 4096;
constexpr int64_t kTiles = 128;           // at most so many tiles at a time
constexpr int64_t kTileRow = 4 * kTiles;  // from one row of the tiles to the next

struct PatternKernels {
  GroupLoops<uint16_t> u16;
  GroupLoops<uint32_t> u32;
  GroupLoops<uint64_t> u64;
  // |p[i]| as double. By DType.
  void (*magnitudes[4])(const void* p, int64_t n, double* out);
  // For each of `rows` rows, `stride` apart, and each c = 0, 1, .. columns - 1 in this order:
  //   sum[i] += |row[c * kernel + place(i)]| for i in [0, count), place(i) = (first + i) / kernel * columns * kernel + (first + i) % kernel,
  // which runs through the kernel positions of one block after another. By DType.
  void (*add_rows[4])(double* sum, const void* data, int64_t rows, int64_t stride, int64_t first, int64_t count, int64_t columns,
                      int64_t kernel);
  // The best mask of each tile, bit 4 * r + c for row r and column c, whose magnitude is x[r * kTileRow + c * apart + t * step] in tile
  // t; readable up to a multiple of 8 tiles. Whether one of those read is NaN.
  bool (*best_tiles)(const double* x, int64_t apart, int64_t step, int64_t tiles, uint16_t* masks);
};

template <class U> const GroupLoops<U>& group_loops(const PatternKernels& k);
template <> inline const GroupLoops<uint16_t>& group_loops(const PatternKernels& k) { return k.u16; }
template <> inline const GroupLoops<uint32_t>& group_loops(const PatternKernels& k) { return k.u32; }
template <> inline const GroupLoops<uint64_t>& group_loops(const PatternKernels& k) { return k.u64; }

const PatternKernels& pattern_kernels();
const PatternKernels& pattern_kernels_generic();
const PatternKernels& pattern_kernels_avx2();
const PatternKernels& pattern_kernels_avx512();

}  // namespace acdc
