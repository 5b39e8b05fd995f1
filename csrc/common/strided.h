// A tensor as kernels see it, and how they read one in logical row-major order whatever its strides.
#pragma once
#include <cstdint>

namespace acdc {

constexpr int kMaxDims = 64;

struct TensorRef {
  void* data;
  int64_t numel;
  const int64_t* sizes;    // [dims]; alive as long as the tensor
  const int64_t* strides;  // [dims], in elements
  int dims;
  bool contiguous;
};

// Visits the elements [begin, begin + count) in logical order as runs along the last axis:
// run(element offset of the first, stride, length, position of the first in [0, count)).
template <class Run>
void for_each_run(const TensorRef& t, int64_t begin, int64_t count, const Run& run) {
  if (count <= 0) return;
  if (t.dims == 0) {
    run(int64_t{0}, int64_t{1}, int64_t{1}, int64_t{0});
    return;
  }
  int64_t index[kMaxDims];
  int64_t rest = begin, offset = 0;
  for (int d = t.dims - 1; d >= 0; --d) {
    index[d] = rest % t.sizes[d];
    rest /= t.sizes[d];
    offset += index[d] * t.strides[d];
  }
  const int last = t.dims - 1;
  for (int64_t done = 0; done < count;) {
    int64_t length = t.sizes[last] - index[last];
    if (length > count - done) length = count - done;
    run(offset, t.strides[last], length, done);
    done += length;
    index[last] += length;
    offset += length * t.strides[last];
    for (int d = last; d > 0 && index[d] == t.sizes[d]; --d) {
      offset += t.strides[d - 1] - index[d] * t.strides[d];
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

template <class T>
void gather(const TensorRef& t, int64_t begin, int64_t count, T* out) {
  const T* data = static_cast<const T*>(t.data);
  for_each_run(t, begin, count, [&](int64_t offset, int64_t stride, int64_t length, int64_t at) {
    for (int64_t i = 0; i < length; ++i) out[at + i] = data[offset + i * stride];
  });
}

template <class T>
void scatter(const TensorRef& t, int64_t begin, int64_t count, const T* in) {
  T* data = static_cast<T*>(t.data);
  for_each_run(t, begin, count, [&](int64_t offset, int64_t stride, int64_t length, int64_t at) {
    for (int64_t i = 0; i < length; ++i) data[offset + i * stride] = in[at + i];
  });
}

}  // namespace acdc
