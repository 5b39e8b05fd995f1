#include "bindings/cuda/device.h"
#include "mask_bits/mask_bits_cuda.h"

namespace acdc {
namespace {

Tensor pack_mask(const Tensor& mask) {
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool, "pack_mask: mask must be of dtype torch.bool");
  const OnDevice device(mask);
  Tensor bits = torch::stable::new_empty(mask, {(mask.numel() + 7) / 8}, ScalarType::Byte);
  check_launch(pack_mask_cuda(static_cast<const uint8_t*>(mask.const_data_ptr()), layout_of(mask, "pack_mask"),
                              static_cast<uint8_t*>(bits.mutable_data_ptr()), device.stream),
               "pack_mask");
  return bits;
}

Tensor unpack_mask(const Tensor& bits, std::vector<int64_t> shape) {
  const OnDevice device(bits);
  Tensor mask = torch::stable::new_empty(bits, shape, ScalarType::Bool);
  check_launch(unpack_mask_cuda(device_bits_of(bits, mask.numel(), bits, "unpack_mask"), static_cast<uint8_t*>(mask.mutable_data_ptr()),
                                mask.numel(), device.stream),
               "unpack_mask");
  return mask;
}

void apply_mask(std::vector<Tensor> tensors, std::vector<Tensor> masks) {
  const char* op = "apply_mask_";
  STD_TORCH_CHECK(tensors.size() == masks.size(), op, ": masks must have one entry a tensor");
  std::vector<MaskedLayout> table;
  int64_t chunks = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_device(tensors[i], tensors[0], op);
    const int64_t numel = tensors[i].numel();
    const uint8_t* bits = device_bits_of(masks[i], numel, tensors[0], op);
    if (numel == 0) continue;
    table.push_back({tensors[i].data_ptr(), bits, element_bytes(dtype_of(tensors[i], op)), chunks, layout_of(tensors[i], op)});
    chunks += (numel + kApplyChunk - 1) / kApplyChunk;
  }
  if (table.empty()) return;
  const OnDevice device(tensors[0]);
  Tensor memory = device_bytes(tensors[0], static_cast<int64_t>(table.size() * sizeof(MaskedLayout)));
  check_launch(apply_mask_cuda(table.data(), static_cast<int64_t>(table.size()), aligned16(memory), device.stream), op);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(acdc_kernels, ACDC_DEVICE_KEY, m) {
  m.impl("pack_mask", TORCH_BOX(&pack_mask));
  m.impl("unpack_mask", TORCH_BOX(&unpack_mask));
  m.impl("apply_mask_", TORCH_BOX(&apply_mask));
}

}  // namespace acdc
