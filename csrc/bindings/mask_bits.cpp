#include "mask_bits/mask_bits.h"

#include "bindings/convert.h"

namespace acdc {
namespace {

Tensor pack_mask(const Tensor& mask) {
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool, "pack_mask: mask must be of dtype torch.bool");
  Tensor bits = torch::stable::new_empty(mask, {(mask.numel() + 7) / 8}, ScalarType::Byte);
  pack_mask_cpu(ref(mask), static_cast<uint8_t*>(bits.mutable_data_ptr()), pool());
  return bits;
}

Tensor unpack_mask(const Tensor& bits, std::vector<int64_t> shape) {
  Tensor mask = torch::stable::new_empty(bits, shape, ScalarType::Bool);
  unpack_mask_cpu(bits_of(bits, mask.numel(), "unpack_mask"), static_cast<uint8_t*>(mask.mutable_data_ptr()), mask.numel(), pool());
  return mask;
}

void apply_mask(std::vector<Tensor> tensors, std::vector<Tensor> masks) {
  STD_TORCH_CHECK(tensors.size() == masks.size(), "apply_mask_: masks must have one entry a tensor");
  std::vector<MaskedTensor> items;
  for (size_t i = 0; i < tensors.size(); ++i)
    items.push_back({ref(tensors[i]), bits_of(masks[i], tensors[i].numel(), "apply_mask_"), element_bytes(dtype_of(tensors[i], "apply_mask_"))});
  apply_mask_cpu(items.data(), static_cast<int>(items.size()), pool());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, CPU, m) {
  m.impl("pack_mask", TORCH_BOX(&pack_mask));
  m.impl("unpack_mask", TORCH_BOX(&unpack_mask));
  m.impl("apply_mask_", TORCH_BOX(&apply_mask));
}

}  // namespace acdc
