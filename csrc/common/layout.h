// How a tensor of any strides lies in device memory, for kernels that visit it in logical row-major order.
#pragma once
#include "common/cuda.h"
#include "common/strided.h"

namespace acdc {

constexpr int kLayoutDims = 8;

struct Layout {
  int64_t numel;
  int32_t dims;  // 0: contiguous
  int64_t sizes[kLayoutDims], strides[kLayoutDims];
};

// Axes of one element are left out, and neighbours that lie as one are joined. False if more than kLayoutDims are left.
inline bool make_layout(const TensorRef& t, Layout* layout) {
  *layout = Layout{};
  layout->numel = t.numel;
  if (t.contiguous) return true;
  int n = 0;
  int64_t sizes[kMaxDims], strides[kMaxDims];
  for (int d = 0; d < t.dims; ++d) {
    if (t.sizes[d] == 1) continue;
    if (n > 0 && strides[n - 1] == t.sizes[d] * t.strides[d]) {
      sizes[n - 1] *= t.sizes[d];
      strides[n - 1] = t.strides[d];
    } else {
      sizes[n] = t.sizes[d];
      strides[n++] = t.strides[d];
    }
  }
  if (n > kLayoutDims) return false;
  if (n == 0 || (n == 1 && strides[0] == 1)) return true;
  layout->dims = n;
  for (int d = 0; d < n; ++d) layout->sizes[d] = sizes[d], layout->strides[d] = strides[d];
  return true;
}

#if defined(__CUDACC__) || defined(ACDC_CUDA_EMULATED)  // bindings include this file too

// a / b for a >= 0 and b > 0. A 64-bit division would be a function call, around which kernels spill; more than 32 bits are rare enough to
// go bit by bit.
__host__ __device__ inline int64_t divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  uint64_t quotient = 0, rest = 0;
  ACDC_ROLLED
  for (int bit = 62; bit >= 0; --bit) {
    rest = rest << 1 | (static_cast<uint64_t>(a) >> bit & 1);
    const bool fits = rest >= static_cast<uint64_t>(b);
    if (fits) rest -= static_cast<uint64_t>(b);
    quotient = quotient << 1 | static_cast<uint64_t>(fits);
  }
  return static_cast<int64_t>(quotient);
}

// Where logical element `index` lies, in elements from the first.
__device__ inline int64_t offset_of(const Layout& l, int64_t index) {
  if (l.dims == 0) return index;
  int64_t offset = 0;
  if (l.numel <= 0xffffffff) {
    uint32_t rest = static_cast<uint32_t>(index);
    for (int d = l.dims - 1; d > 0; --d) {
      const uint32_t size = static_cast<uint32_t>(l.sizes[d]), next = rest / size;
      offset += static_cast<int64_t>(rest - next * size) * l.strides[d];
      rest = next;
    }
    return offset + static_cast<int64_t>(rest) * l.strides[0];
  }
  for (int d = l.dims - 1; d > 0; --d) {
    const int64_t next = divide(index, l.sizes[d]);
    offset += (index - next * l.sizes[d]) * l.strides[d];
    index = next;
  }
  return offset + index * l.strides[0];
}

#endif

}  // namespace acdc
