#include "sparse_linear/sparse_linear.h"

#include <tuple>

#include "bindings/bundle_meta.h"
#include "sparse_linear/half_kernels.h"

namespace acdc {
namespace {

Tensors build_bundles(const Tensor& bits, Ints meta, StringHandle format_handle) {
  const char* op = "build_bundles";
  const std::string format = take_string(format_handle);
  const Meta m(meta, op);
  const BundleFormat f = format_of(format, op);
  STD_TORCH_CHECK(f == BundleFormat::single || (m.rows % 4 == 0 && m.kept % 4 == 0), op, ": rows and kept must be multiples of 4 for ", format);
  const uint8_t* mask = bits_of(bits, m.rows * m.cols, op);
  const Tensors index = new_index(bits, m, f);
  const BundleError error = build_bundles_cpu(mask, index_of(index, m, f, bits, op), pool());
  STD_TORCH_CHECK(error != BundleError::count_differs, op, ": bits must keep ", m.kept, " weights");
  STD_TORCH_CHECK(error != BundleError::groups_differ, op, ": bits must keep the same columns in the four rows of a group");
  return Tensors(index.begin() + 1, index.end());
}

void check_mask(BundleError error, const char* op) {
  STD_TORCH_CHECK(error == BundleError::none, op, ": index must be of the mask as it is now, got one whose bits were changed since it was built; compress again");
}

Tensor gather_values(const Tensor& weight, Tensors index, Ints meta, StringHandle format_handle) {
  const char* op = "gather_values";
  const std::string format = take_string(format_handle);
  const Meta m(meta, op);
  const BundleIndex i = index_of(index, m, format_of(format, op), weight, op);
  STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 2 && weight.size(0) == m.rows && weight.size(1) == m.cols, op, ": weight must have shape [", m.rows,
                  ", ", m.cols, "]");
  Tensor values = torch::stable::new_empty(weight, {m.kept});
  check_mask(gather_values_cpu(weight.const_data_ptr(), weight.stride(0), weight.stride(1), bits_of(index[0], m.rows * m.cols, op), i.rank,
                               i.position, m.rows, m.cols, value_bytes(weight, op), values.mutable_data_ptr(), pool()),
             op);
  return values;
}

Tensor scatter_values(const Tensor& values, Tensors index, Ints meta, StringHandle format_handle) {
  const char* op = "scatter_values";
  const std::string format = take_string(format_handle);
  const Meta m(meta, op);
  const BundleIndex i = index_of(index, m, format_of(format, op), values, op);
  STD_TORCH_CHECK(values.is_cpu() && values.dim() == 1 && values.numel() == m.kept, op, ": values must have ", m.kept, " elements");
  const Tensor dense = torch::stable::contiguous(values);
  Tensor weight = torch::stable::new_empty(values, {m.rows, m.cols});
  check_mask(scatter_values_cpu(dense.const_data_ptr(), bits_of(index[0], m.rows * m.cols, op), i.rank, i.position, m.rows, m.cols,
                                value_bytes(values, op), weight.mutable_data_ptr(), pool()),
             op);
  return weight;
}

// float32 values and the index, ready for a product.
SparseWeight weight_of(const Tensor& values, const Tensors& index, const Ints& meta, const std::string& format, const char* op) {
  const Meta m(meta, op);
  const BundleFormat f = format_of(format, op);
  const BundleIndex i = index_of(index, m, f, values, op);
  STD_TORCH_CHECK(values.is_cpu() && values.scalar_type() == ScalarType::Float && values.is_contiguous() && values.dim() == 1 && values.numel() == m.kept,
                  op, ": values must be ", m.kept, " contiguous float32");
  return {f,
          m.kept,
          static_cast<const float*>(values.const_data_ptr()),
          {m.rows, m.cols, m.panel_rows, m.block_cols, i.bundles, i.starts, i.offsets},
          {m.cols, m.rows, m.t_panel_rows, m.t_block_cols, i.t_bundles, i.t_starts, i.t_offsets},
          i.t_permutation};
}

// A tensor [..., features] as samples whose features lie side by side; copied only if they don't.
struct Samples {
  Tensor held;
  int64_t count;
  Batch<const float> batch;

  Samples(const Tensor& t, int64_t features, const char* op, const char* name) : held(t) {
    STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Float && t.dim() >= 1 && t.size(t.dim() - 1) == features, op, ": ", name,
                    " must be float32 on the CPU with ", features, " features");
    count = 1;
    for (int64_t d = 0; d + 1 < t.dim(); ++d) count *= t.size(d);
    const bool rows = t.dim() == 2 && (t.stride(1) == 1 || features <= 1);
    if (!rows) held = torch::stable::contiguous(t);
    batch = {static_cast<const float*>(held.const_data_ptr()), rows ? t.stride(0) : features};
  }
};

Tensor like_samples(const Tensor& t, int64_t features) {
  Ints shape(t.sizes().begin(), t.sizes().end());
  shape.back() = features;
  return torch::stable::new_empty(t, shape);
}

std::tuple<Tensor, Tensor> sparse_linear(const Tensor& x, const Tensor& values, Tensors index, Ints meta, StringHandle format_handle,
                                         std::optional<Tensor> bias, bool save, bool fp16) {
  const char* op = "sparse_linear";
  const std::string format = take_string(format_handle);
  const SparseWeight w = weight_of(values, index, meta, format, op);
  STD_TORCH_CHECK(!fp16 || half_kernels() != nullptr, op, ": fp16 must be False, got True: this processor or build has no AVX512-FP16");
  STD_TORCH_CHECK(!fp16 || w.format == BundleFormat::single, op, ": fp16 must be False for ", format);
  const Samples in(x, w.cols(), op, "x");
  Tensor tiles = torch::stable::new_empty(x, {save ? tile_floats(in.count, w.cols()) : 0});
  Tensor y = like_samples(x, w.rows());
  const float* b = nullptr;
  Tensor held;
  if (bias) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->scalar_type() == ScalarType::Float && bias->numel() == w.rows(), op, ": bias must be ", w.rows(), " float32");
    held = torch::stable::contiguous(*bias);
    b = static_cast<const float*>(held.const_data_ptr());
  }
  const auto forward = fp16 ? sparse_linear_forward_half_cpu : sparse_linear_forward_cpu;
  forward(w, in.count, in.batch, b, {static_cast<float*>(y.mutable_data_ptr()), w.rows()},
          save ? static_cast<float*>(tiles.mutable_data_ptr()) : nullptr, pool());
  return {y, tiles};
}

std::tuple<Tensor, Tensor> sparse_linear_backward(const Tensor& grad, const Tensor& x, bool packed, const Tensor& values, Tensors index, Ints meta,
                                                  StringHandle format_handle, bool need_input, bool need_values) {
  const char* op = "sparse_linear_backward";
  const std::string format = take_string(format_handle);
  const SparseWeight w = weight_of(values, index, meta, format, op);
  const Samples dy(grad, w.rows(), op, "grad");
  Tensor dx = need_input ? like_samples(grad, w.cols()) : torch::stable::new_empty(grad, {0});
  Tensor dvalues = torch::stable::new_empty(values, {need_values ? w.kept : 0});
  SparseLinearGradients g{dy.batch, {nullptr, 0}, nullptr, {nullptr, 0}, nullptr};
  if (need_input) g.dx = {static_cast<float*>(dx.mutable_data_ptr()), w.cols()};
  std::optional<Samples> in;
  if (need_values) {
    g.dvalues = static_cast<float*>(dvalues.mutable_data_ptr());
    if (packed) {
      STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.is_contiguous() && x.numel() == tile_floats(dy.count, w.cols()), op,
                      ": tiles must be those of ", dy.count, " samples");
      g.tiles = static_cast<const float*>(x.const_data_ptr());
    } else {
      in.emplace(x, w.cols(), op, "x");
      STD_TORCH_CHECK(in->count == dy.count, op, ": x must have the ", dy.count, " samples of grad, got ", in->count);
      g.x = in->batch;
    }
  }
  sparse_linear_backward_cpu(w, dy.count, g, pool());
  return {dx, dvalues};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, CPU, m) {
  m.impl("build_bundles", TORCH_BOX(&build_bundles));
  m.impl("gather_values", TORCH_BOX(&gather_values));
  m.impl("scatter_values", TORCH_BOX(&scatter_values));
  m.impl("sparse_linear", TORCH_BOX(&sparse_linear));
  m.impl("sparse_linear_backward", TORCH_BOX(&sparse_linear_backward));
}

}  // namespace acdc
