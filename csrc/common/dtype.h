#pragma once
#include <cstdint>

namespace acdc {

enum class DType : int { f32, f64, bf16, f16 };

inline int64_t element_bytes(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

}  // namespace acdc
