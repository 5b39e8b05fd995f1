// From the arguments of ops that take a topology to the index that kernels know: formats/bundles.py has the layout.
#pragma once
#include "bindings/convert.h"
#include "sparse_linear/bundles.h"

namespace acdc {

using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;

// What the public functions have checked is checked here once more as far as memory depends on it.
inline BundleFormat format_of(const std::string& format, const char* op) {
  STD_TORCH_CHECK(format == "bundles" || format == "bundles-4x1", op, ": format must be bundles or bundles-4x1, got ", format);
  return format == "bundles" ? BundleFormat::single : BundleFormat::block4x1;
}

struct Meta {
  int64_t rows, cols, kept;
  int32_t panel_rows, block_cols, t_panel_rows, t_block_cols;

  Meta(const Ints& meta, const char* op) {
    STD_TORCH_CHECK(meta.size() == 7, op, ": meta must have 7 entries, got ", meta.size());
    rows = meta[0], cols = meta[1], kept = meta[2];
    STD_TORCH_CHECK(rows >= 0 && cols >= 0 && kept >= 0 && kept < (int64_t{1} << 31), op, ": meta must hold a shape and fewer than 2^31 kept");
    for (int i = 3; i < 7; ++i) {
      const int64_t largest = i % 2 == 1 ? kLargestPanel : kLargestBlock;
      STD_TORCH_CHECK(meta[i] >= 4 && meta[i] <= largest && meta[i] % 4 == 0, op, ": meta[", i, "] must be a multiple of 4 up to ", largest);
    }
    panel_rows = static_cast<int32_t>(meta[3]), block_cols = static_cast<int32_t>(meta[4]);
    t_panel_rows = static_cast<int32_t>(meta[5]), t_block_cols = static_cast<int32_t>(meta[6]);
  }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// An index tensor's data, of `count` elements, on the device of `like`.
template <class T>
T* part(const Tensors& index, size_t i, ScalarType type, int64_t count, const Tensor& like, const char* op) {
  STD_TORCH_CHECK(index.size() == 10, op, ": index must have 10 tensors, got ", index.size());
  const Tensor& t = index[i];
  STD_TORCH_CHECK(t.is_cpu() == like.is_cpu() && t.get_device_index() == like.get_device_index() && t.is_contiguous() && t.scalar_type() == type &&
                      t.numel() == count,
                  op, ": index[", i, "] must be contiguous with ", count, " elements, got ", t.numel());
  return static_cast<T*>(t.data_ptr());
}

// The caller checks that `like` is where its kernel runs.
inline BundleIndex index_of(const Tensors& index, const Meta& m, BundleFormat format, const Tensor& like, const char* op) {
  const int64_t entries = format == BundleFormat::block4x1 ? m.kept / 4 : m.kept;
  const int64_t bundles = bundle_count(m.rows, m.cols, m.panel_rows, m.block_cols), t_bundles = bundle_count(m.cols, m.rows, m.t_panel_rows, m.t_block_cols);
  const int64_t starts = ceil_div(m.rows, m.panel_rows) * ceil_div(m.cols, m.block_cols) + 1;
  const int64_t t_starts = ceil_div(m.cols, m.t_panel_rows) * ceil_div(m.rows, m.t_block_cols) + 1;
  return {m.rows,
          m.cols,
          m.kept,
          m.panel_rows,
          m.block_cols,
          m.t_panel_rows,
          m.t_block_cols,
          format,
          part<int64_t>(index, 1, ScalarType::Long, ceil_div(m.rows * m.cols, kRankElements) + 1, like, op),
          part<int32_t>(index, 2, ScalarType::Int, m.kept, like, op),
          part<Bundle>(index, 3, ScalarType::Short, 8 * bundles, like, op),
          part<int64_t>(index, 4, ScalarType::Long, starts, like, op),
          part<int16_t>(index, 5, ScalarType::Short, entries, like, op),
          part<Bundle>(index, 6, ScalarType::Short, 8 * t_bundles, like, op),
          part<int64_t>(index, 7, ScalarType::Long, t_starts, like, op),
          part<int16_t>(index, 8, ScalarType::Short, entries, like, op),
          part<int32_t>(index, 9, ScalarType::Int, entries, like, op)};
}

// The ten tensors of an index, `bits` the first, the others yet to be written.
inline Tensors new_index(const Tensor& bits, const Meta& m, BundleFormat format) {
  const int64_t entries = format == BundleFormat::block4x1 ? m.kept / 4 : m.kept;
  auto make = [&](Ints shape, ScalarType type) { return torch::stable::new_empty(bits, shape, type); };
  auto side = [&](Tensors& to, int64_t rows, int64_t cols, int32_t panel_rows, int32_t block_cols) {
    to.push_back(make({bundle_count(rows, cols, panel_rows, block_cols), 8}, ScalarType::Short));
    to.push_back(make({ceil_div(rows, panel_rows) * ceil_div(cols, block_cols) + 1}, ScalarType::Long));
    to.push_back(make({entries}, ScalarType::Short));
  };
  Tensors index = {bits, make({ceil_div(m.rows * m.cols, kRankElements) + 1}, ScalarType::Long), make({m.kept}, ScalarType::Int)};
  side(index, m.rows, m.cols, m.panel_rows, m.block_cols);
  side(index, m.cols, m.rows, m.t_panel_rows, m.t_block_cols);
  index.push_back(make({entries}, ScalarType::Int));
  return index;
}

inline int value_bytes(const Tensor& t, const char* op) { return static_cast<int>(element_bytes(dtype_of(t, op))); }

}  // namespace acdc
