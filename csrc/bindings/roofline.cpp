#include "roofline/roofline.h"

#include "bindings/convert.h"

namespace acdc {
namespace {

void check_dense(const Tensor& t, const char* op) {
  STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous(), op, ": tensors must be contiguous and on the CPU");
}

Tensor roofline_read(std::vector<Tensor> tensors) {
  STD_TORCH_CHECK(!tensors.empty(), "roofline_read: tensors must have at least one tensor, got an empty list");
  std::vector<const void*> data;
  std::vector<int64_t> bytes;
  for (const Tensor& t : tensors) {
    check_dense(t, "roofline_read");
    data.push_back(t.const_data_ptr());
    bytes.push_back(t.numel() * static_cast<int64_t>(t.element_size()));
  }
  Tensor largest = torch::stable::new_empty(tensors[0], {}, ScalarType::Byte);
  *static_cast<uint8_t*>(largest.mutable_data_ptr()) =
      roofline_read_cpu(data.data(), bytes.data(), static_cast<int>(tensors.size()), pool());
  return largest;
}

void roofline_update(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> buffers, std::vector<Tensor> masks) {
  const size_t n = params.size();
  STD_TORCH_CHECK(grads.size() == n && buffers.size() == n && (masks.empty() || masks.size() == n),
                  "roofline_update_: grads, buffers and masks must have one entry a tensor");
  std::vector<float*> p, b;
  std::vector<const float*> g;
  std::vector<const uint8_t*> bits;
  std::vector<int64_t> numel;
  for (size_t i = 0; i < n; ++i) {
    for (const Tensor* t : {&params[i], &grads[i], &buffers[i]}) {
      check_dense(*t, "roofline_update_");
      STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->numel() == params[i].numel(),
                      "roofline_update_: tensors must be float32 and of one shape");
    }
    p.push_back(static_cast<float*>(params[i].mutable_data_ptr()));
    g.push_back(static_cast<const float*>(grads[i].const_data_ptr()));
    b.push_back(static_cast<float*>(buffers[i].mutable_data_ptr()));
    numel.push_back(params[i].numel());
    if (!masks.empty()) bits.push_back(bits_of(masks[i], numel.back(), "roofline_update_"));
  }
  const uint8_t* const* all_bits = masks.empty() ? nullptr : bits.data();
  roofline_update_cpu({p.data(), g.data(), b.data(), all_bits, numel.data(), static_cast<int>(n)}, pool());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, CPU, m) {
  m.impl("roofline_read", TORCH_BOX(&roofline_read));
  m.impl("roofline_update_", TORCH_BOX(&roofline_update));
}

}  // namespace acdc
