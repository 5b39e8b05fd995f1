// How an element's bits become its key, by dtype. Not for ISA files.
#pragma once
#include <limits>

#include "common/dtype.h"
#include "topk/topk_kernels.h"

namespace acdc {

template <class U>
KeyRule<U> rule_for(DType dtype) {
  const U magnitude = static_cast<U>(std::numeric_limits<U>::max() >> 1);
  switch (dtype) {
    case DType::f32: return {magnitude, static_cast<U>(0x7f800001u)};
    case DType::f64: return {magnitude, static_cast<U>(0x7ff0000000000001ull)};
    case DType::bf16: return {magnitude, static_cast<U>(0x7f81)};
    case DType::f16: return {magnitude, static_cast<U>(0x7c01)};
  }
  return {};
}

}  // namespace acdc
