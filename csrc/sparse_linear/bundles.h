// The index of a sparse weight that the products walk: panels of rows, blocks of columns, bundles of four rows.
//
// For every panel (panel_rows consecutive rows) and block (block_cols consecutive columns), rows are sorted by how many kept columns
// they have there, most first, ties in order; four at a time make a bundle. Its values are its steps (value t of each of the four rows,
// for every t that all four have), then what is left of rows 0, 1 and 2. So trip counts are predictable, nothing is padded, and the
// values are exactly the kept weights. In the 4x1 format a bundle is a group of four consecutive rows that keep the same columns.
//
// The columns side is the same structure of the transposed weight; its entries say where their value is. docs/design.md has the layout.
#pragma once
#include <cstdint>

#include "common/parallel.h"

namespace acdc {

struct Bundle {
  int16_t row[4];  // within the panel, by falling count; panel_rows itself where there is none
  int16_t steps;   // values that all four rows have
  int16_t rest[3];  // further values of rows 0, 1, 2
};
static_assert(sizeof(Bundle) == 16, "an index tensor holds bundles as eight int16");

enum class BundleFormat : int { single, block4x1 };

constexpr int kOffsetUnit = 64;    // offsets are (column within the block) * 64: bytes where a tile is 16 samples wide
constexpr int kLargestBlock = 512;  // columns, so that offsets fit int16
constexpr int kLargestPanel = 4096;  // rows
constexpr int kRankElements = 4096;

// One side of the weight: rows are what a product puts out, cols what it takes in.
struct BundleSide {
  int64_t rows, cols;
  int32_t panel_rows, block_cols;
  const Bundle* bundles;
  const int64_t* starts;   // [panels * blocks + 1] first entry of (panel, block)
  const int16_t* offsets;  // one an entry; rows side of 4x1: one a step

  int64_t panels() const { return (rows + panel_rows - 1) / panel_rows; }
  int64_t blocks() const { return (cols + block_cols - 1) / block_cols; }
  int64_t rows_in(int64_t panel) const {
    const int64_t left = rows - panel * panel_rows;
    return left < panel_rows ? left : panel_rows;
  }
  int bundles_in(int64_t panel) const { return static_cast<int>((rows_in(panel) + 3) / 4); }
  // All panels before `panel` are whole.
  const Bundle* first_bundle(int64_t panel, int64_t block) const {
    return bundles + panel * (panel_rows / 4) * blocks() + block * bundles_in(panel);
  }
};

inline int64_t bundle_count(int64_t rows, int64_t cols, int32_t panel_rows, int32_t block_cols) {
  const int64_t whole = rows / panel_rows, left = rows % panel_rows;
  return (whole * (panel_rows / 4) + (left + 3) / 4) * ((cols + block_cols - 1) / block_cols);
}

// Where the index of a mask is written; sizes as in bundles.h's tensors.
struct BundleIndex {
  int64_t rows, cols, kept;
  int32_t panel_rows, block_cols, t_panel_rows, t_block_cols;
  BundleFormat format;
  int64_t* rank;       // [ceil(rows * cols / 4096) + 1] kept elements before each 4096th
  int32_t* position;   // [kept] the k-th kept element in row-major order -> its place among the values
  Bundle* bundles;     // [bundle_count] rows side
  int64_t* starts;     // [panels * blocks + 1]
  int16_t* offsets;    // [kept], 4x1: [kept / 4]
  Bundle* t_bundles;   // columns side
  int64_t* t_starts;
  int16_t* t_offsets;
  int32_t* t_permutation;  // [kept] entry -> place of its value; 4x1: [kept / 4] entry -> its block of four values
};

enum class BundleError : int { none, count_differs, groups_differ, mask_differs };

// Builds the index of `bits` (one bit an element of [rows, cols], row-major). panel_rows and block_cols are multiples of 4, at most
// kLargestPanel and kLargestBlock. count_differs: the mask doesn't keep `kept` elements; groups_differ: four rows of a 4x1 group keep different
// columns. What was written is of no use then, but all of it lies within the arrays.
BundleError build_bundles_cpu(const uint8_t* bits, const BundleIndex& index, const Pool& pool);

// values[position[k]] = k-th kept element, and back with +0 everywhere else. The weight has strides in elements; `bytes` an element's.
// mask_differs: in some run of 4096 weights `bits` keeps another number than when the index was built; what was written is of no use then,
// but all of it lies within the arrays. (Another mask that keeps as many in each can't be told from the first.)
BundleError gather_values_cpu(const void* weight, int64_t row_stride, int64_t col_stride, const uint8_t* bits, const int64_t* rank,
                              const int32_t* position, int64_t rows, int64_t cols, int bytes, void* values, const Pool& pool);
BundleError scatter_values_cpu(const void* values, const uint8_t* bits, const int64_t* rank, const int32_t* position, int64_t rows,
                               int64_t cols, int bytes, void* weight, const Pool& pool);

}  // namespace acdc
