#include "bindings/bundle_meta.h"
#include "bindings/cuda/device.h"
#include "sparse_linear/bundles_cuda.h"

namespace acdc {
namespace {

Tensors build_bundles(const Tensor& bits, Ints meta, StringHandle format_handle) {
  const char* op = "build_bundles";
  const std::string format = take_string(format_handle);
  const Meta m(meta, op);
  const BundleFormat f = format_of(format, op);
  STD_TORCH_CHECK(f == BundleFormat::single || (m.rows % 4 == 0 && m.kept % 4 == 0), op, ": rows and kept must be multiples of 4 for ", format);
  const uint8_t* mask = device_bits_of(bits, m.rows * m.cols, bits, op);
  const OnDevice device(bits);
  const Tensors index = new_index(bits, m, f);
  Tensor scratch = device_bytes(bits, build_bundles_scratch(m.rows, m.cols));
  check_launch(build_bundles_cuda(mask, index_of(index, m, f, bits, op), aligned16(scratch), device.stream), op);
  return Tensors(index.begin() + 1, index.end());
}

// Raises unless the index fits `meta`; `like` is on the device.
ValuePlaces places_of(const Tensors& index, const Meta& m, BundleFormat format, const Tensor& like, const char* op) {
  check_device(like, like, op);
  const BundleIndex i = index_of(index, m, format, like, op);
  return {device_bits_of(index[0], m.rows * m.cols, like, op), i.rank, i.position, m.rows, m.cols, m.kept};
}

Tensor gather_values(const Tensor& weight, Tensors index, Ints meta, StringHandle format_handle) {
  const char* op = "gather_values";
  const std::string format = take_string(format_handle);
  const Meta m(meta, op);
  const ValuePlaces places = places_of(index, m, format_of(format, op), weight, op);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == m.rows && weight.size(1) == m.cols, op, ": weight must have shape [", m.rows, ", ", m.cols, "]");
  const OnDevice device(weight);
  Tensor values = torch::stable::new_empty(weight, {m.kept});
  check_launch(gather_values_cuda(weight.const_data_ptr(), weight.stride(0), weight.stride(1), places, value_bytes(weight, op),
                                  values.mutable_data_ptr(), device.stream),
               op);
  return values;
}

Tensor scatter_values(const Tensor& values, Tensors index, Ints meta, StringHandle format_handle) {
  const char* op = "scatter_values";
  const std::string format = take_string(format_handle);
  const Meta m(meta, op);
  const ValuePlaces places = places_of(index, m, format_of(format, op), values, op);
  STD_TORCH_CHECK(values.dim() == 1 && values.numel() == m.kept, op, ": values must have ", m.kept, " elements");
  const OnDevice device(values);
  const Tensor dense = torch::stable::contiguous(values);
  Tensor weight = torch::stable::new_empty(values, {m.rows, m.cols});
  check_launch(scatter_values_cuda(dense.const_data_ptr(), places, value_bytes(values, op), weight.mutable_data_ptr(), device.stream), op);
  return weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, ACDC_DEVICE_KEY, m) {
  m.impl("build_bundles", TORCH_BOX(&build_bundles));
  m.impl("gather_values", TORCH_BOX(&gather_values));
  m.impl("scatter_values", TORCH_BOX(&scatter_values));
}

}  // namespace acdc
