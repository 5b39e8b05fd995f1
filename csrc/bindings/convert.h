// From torch's stable ABI to what kernels take: tensors as TensorRef, torch's threads as a Pool.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/parallel.h"
#include "common/strided.h"

namespace acdc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void torch_pool(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

inline Pool pool() { return {torch_pool, static_cast<int>(torch::stable::get_num_threads())}; }

inline TensorRef ref(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() <= kMaxDims, "acdc_kernels: a tensor must have at most ", kMaxDims, " dimensions, got ", t.dim());
  return {t.data_ptr(), t.numel(), t.sizes().data(), t.strides().data(), static_cast<int>(t.dim()), t.is_contiguous()};
}

inline DType dtype_of(const Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, op, ": tensors must be float32, float64, bfloat16 or float16");
  }
}

// Memory safety only: the public functions validate with messages that name the argument.
inline const uint8_t* bits_of(const Tensor& bits, int64_t numel, const char* op) {
  STD_TORCH_CHECK(bits.scalar_type() == ScalarType::Byte && bits.is_cpu() && bits.is_contiguous() && bits.numel() == (numel + 7) / 8, op,
                  ": a mask must be contiguous uint8 of one bit an element");
  return static_cast<const uint8_t*>(bits.const_data_ptr());
}

// The text of a `str` argument, whose handle ends here. An argument of type std::string leaks one on every call with torch's
// headers up to 2.13 (pytorch/pytorch#191340); what is leaked lies between large blocks and keeps malloc from using them again.
inline std::string take_string(StringHandle handle) {
  size_t length = 0;
  const char* data = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  std::string text(data, length);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return text;
}

// The value of a tensor of one element on the CPU.
inline double number_of(const Tensor& t, const char* op) {
  STD_TORCH_CHECK(t.is_cpu() && t.numel() == 1, op, ": a scalar tensor must be on the CPU and have one element");
  const void* data = t.const_data_ptr();
  switch (t.scalar_type()) {
    case ScalarType::Float: return *static_cast<const float*>(data);
    case ScalarType::Double: return *static_cast<const double*>(data);
    case ScalarType::BFloat16: return static_cast<float>(*static_cast<const torch::headeronly::BFloat16*>(data));
    case ScalarType::Half: return static_cast<float>(*static_cast<const torch::headeronly::Half*>(data));
    default: STD_TORCH_CHECK(false, op, ": a scalar tensor must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace acdc
