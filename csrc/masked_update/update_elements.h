// Elements as the masked updates' kernels load, store and compute with them, and the loop that takes them one by one.
#pragma once
#include "common/half_cuda.h"
#include "masked_update/masked_update_cuda.h"
#include "masked_update/update_tables.h"

namespace acdc {
namespace {

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

__device__ inline float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return __fma_rn(a, b, c); }

__device__ inline float value(float x) { return x; }
__device__ inline double value(double x) { return x; }
__device__ inline float value(bf16 x) { return widen(x); }
__device__ inline float value(f16 x) { return widen(x); }
__device__ inline void put(float x, float* to) { *to = x; }
__device__ inline void put(double x, double* to) { *to = x; }
__device__ inline void put(float x, bf16* to) { narrow(x, to); }
__device__ inline void put(float x, f16* to) { narrow(x, to); }

__device__ inline double number(const DeviceNumber& n) {
  switch (n.dtype) {
    case DType::f32: return *static_cast<const float*>(n.data);
    case DType::f64: return *static_cast<const double*>(n.data);
    case DType::bf16: return widen(*static_cast<const bf16*>(n.data));
    default: return widen(*static_cast<const f16*>(n.data));
  }
}

__device__ inline bool found_inf(const DeviceNumbers& device) { return device.found_inf.data != nullptr && number(device.found_inf) != 0; }

// Elements of a vector of sixteen bytes, by an index that is known when loops are unrolled.
__device__ inline float element(const Bytes16& v, int i, float) { return __uint_as_float(v.word[i]); }
__device__ inline double element(const Bytes16& v, int i, double) {
  return __longlong_as_double(static_cast<long long>(uint64_t{v.word[2 * i + 1]} << 32 | v.word[2 * i]));
}
template <class H>
__device__ inline float element(const Bytes16& v, int i, H) {
  return widen(H{static_cast<uint16_t>(v.word[i / 2] >> (16 * (i & 1)))});
}
__device__ inline void set_element(Bytes16& v, int i, float x, float) { v.word[i] = __float_as_uint(x); }
__device__ inline void set_element(Bytes16& v, int i, double x, double) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(x));
  v.word[2 * i] = static_cast<uint32_t>(bits);
  v.word[2 * i + 1] = static_cast<uint32_t>(bits >> 32);
}
template <class H>
__device__ inline void set_element(Bytes16& v, int i, float x, H) {
  H narrowed;
  narrow(x, &narrowed);
  const uint32_t bits = narrowed.bits;
  v.word[i / 2] = i & 1 ? (v.word[i / 2] & 0xffffu) | bits << 16 : (v.word[i / 2] & 0xffff0000u) | bits;
}

// Elements [first, count) of a chunk one by one. place(i, offsets) sets where element i lies in parameter, gradient and states, and
// returns the number of its mask bit.
template <int kAtOnce, class T, class S, class Update, class C, int kStates, class Place>
__device__ void update_elements(const UpdateEntry<kStates>& t, const typename Update::template Numbers<C>& h, int first, int count,
                                const Place& place) {
  T* param = static_cast<T*>(t.param);
  const T* grad = static_cast<const T*>(t.grad);
  ACDC_ROLLED
  for (int start = first + static_cast<int>(threadIdx.x); start < count; start += kAtOnce * static_cast<int>(blockDim.x)) {
    int64_t at[kAtOnce][2 + kStates];
    bool kept[kAtOnce];
    ACDC_UNROLLED
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = start + u * static_cast<int>(blockDim.x);
      kept[u] = false;
      if (i >= count) continue;
      const int64_t bit = place(i, at[u]);
      kept[u] = t.bits == nullptr || (t.bits[bit >> 3] >> (bit & 7) & 1);
    }
    C p[kAtOnce], g[kAtOnce], s[kAtOnce][kStates];
    ACDC_UNROLLED
    for (int u = 0; u < kAtOnce; ++u) {
      if (!kept[u]) continue;
      p[u] = value(param[at[u][0]]);
      g[u] = value(grad[at[u][1]]);
      ACDC_UNROLLED
      for (int k = 0; k < kStates; ++k)
        if (k < h.reads) s[u][k] = value(static_cast<const S*>(t.states[k])[at[u][2 + k]]);
    }
    ACDC_UNROLLED
    for (int u = 0; u < kAtOnce; ++u) {
      if (start + u * static_cast<int>(blockDim.x) >= count || (!kept[u] && t.zeros_kept)) continue;
      if (kept[u]) {
        Update::step(h, p[u], g[u], s[u]);
      } else {
        p[u] = 0;
        ACDC_UNROLLED
        for (int k = 0; k < kStates; ++k) s[u][k] = 0;
      }
      put(p[u], param + at[u][0]);
      ACDC_UNROLLED
      for (int k = 0; k < kStates; ++k)
        if (k < h.states) put(s[u][k], static_cast<S*>(t.states[k]) + at[u][2 + k]);
    }
  }
}

}  // namespace
}  // namespace acdc
