// Vectors of floats for the products of sparse_linear: splat, fma, square transposition, and sums of many vectors at once.
// Included by ISA files only: everything sits in an anonymous namespace.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
#define ACDC_UNROLL _Pragma("GCC unroll 16")
#elif defined(__clang__)
#define ACDC_UNROLL _Pragma("unroll")
#else
#define ACDC_UNROLL
#endif

namespace acdc {
namespace {

// What AVX2 and AVX-512 do alike: all that stays within quarters of four lanes. Templates, because each level declares its own Vec below.

// Within each quarter: r[4 * k + i][j] <-> r[4 * k + j][i].
template <class V, int n>
inline __attribute__((always_inline)) void transpose_fours(V (&r)[n]) {
  V t[n];
  for (int i = 0; i < n; i += 2) {
    t[i] = low(r[i], r[i + 1]);
    t[i + 1] = high(r[i], r[i + 1]);
  }
  for (int i = 0; i < n; i += 4) {
    r[i] = low2(t[i], t[i + 2]);
    r[i + 1] = high2(t[i], t[i + 2]);
    r[i + 2] = low2(t[i + 1], t[i + 3]);
    r[i + 3] = high2(t[i + 1], t[i + 3]);
  }
}

// Lane i of each quarter of the result is that quarter's sum of vector(first + i).
template <class F>
inline __attribute__((always_inline)) auto sums_of_four(const F& vector, int first) {
  using V = decltype(vector(first));
  const V a = vector(first), b = vector(first + 1), ab = V::add(low(a, b), high(a, b));
  const V c = vector(first + 2), d = vector(first + 3), cd = V::add(low(c, d), high(c, d));
  return V::add(low2(ab, cd), high2(ab, cd));
}

#if defined(__AVX512F__)

struct Vec {
  static constexpr int lanes = 16;
  __m512 v;
  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec splat(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  static Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  float sum() const { return _mm512_reduce_add_ps(v); }
};

inline Vec low(Vec a, Vec b) { return {_mm512_unpacklo_ps(a.v, b.v)}; }
inline Vec high(Vec a, Vec b) { return {_mm512_unpackhi_ps(a.v, b.v)}; }
inline Vec low2(Vec a, Vec b) { return {_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a.v), _mm512_castps_pd(b.v)))}; }
inline Vec high2(Vec a, Vec b) { return {_mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a.v), _mm512_castps_pd(b.v)))}; }
inline Vec even4(Vec a, Vec b) { return {_mm512_shuffle_f32x4(a.v, b.v, 0x88)}; }
inline Vec odd4(Vec a, Vec b) { return {_mm512_shuffle_f32x4(a.v, b.v, 0xdd)}; }

// r[i][j] <-> r[j][i]
inline void transpose(Vec (&r)[16]) {
  Vec t[16];
  transpose_fours(r);
  for (int i = 0; i < 4; ++i) {
    t[i] = even4(r[i], r[4 + i]);
    t[4 + i] = odd4(r[i], r[4 + i]);
    t[8 + i] = even4(r[8 + i], r[12 + i]);
    t[12 + i] = odd4(r[8 + i], r[12 + i]);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = even4(t[i], t[8 + i]);
    r[8 + i] = odd4(t[i], t[8 + i]);
    r[4 + i] = even4(t[4 + i], t[12 + i]);
    r[12 + i] = odd4(t[4 + i], t[12 + i]);
  }
}

// Lane i of the result is the sum of all lanes of vector i; vector(i) makes it when it is needed.
template <class F>
inline __attribute__((always_inline)) Vec sums(const F& vector) {
  Vec q[4];
  ACDC_UNROLL
  for (int t = 0; t < 4; ++t) q[t] = sums_of_four(vector, 4 * t);
  const Vec x = Vec::add(even4(q[0], q[1]), odd4(q[0], q[1])), y = Vec::add(even4(q[2], q[3]), odd4(q[2], q[3]));
  return Vec::add(even4(x, y), odd4(x, y));
}

// Lanes are kRows sums a step; p[4 * step + row] += its sum, for the first `steps` of the vector's four.
constexpr int kRows = 4;  // of a bundle's four, as many at a time as there are registers for
inline void add_steps(Vec sum, float* p, int steps) {
  const __mmask16 m = static_cast<__mmask16>((1u << 4 * steps) - 1);
  _mm512_mask_storeu_ps(p, m, _mm512_add_ps(sum.v, _mm512_maskz_loadu_ps(m, p)));
}

#elif defined(__AVX2__)

struct Vec {
  static constexpr int lanes = 8;
  __m256 v;
  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec splat(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  static Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  float sum() const {
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
  }
};

inline Vec low(Vec a, Vec b) { return {_mm256_unpacklo_ps(a.v, b.v)}; }
inline Vec high(Vec a, Vec b) { return {_mm256_unpackhi_ps(a.v, b.v)}; }
inline Vec low2(Vec a, Vec b) { return {_mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a.v), _mm256_castps_pd(b.v)))}; }
inline Vec high2(Vec a, Vec b) { return {_mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a.v), _mm256_castps_pd(b.v)))}; }
inline Vec lower_halves(Vec a, Vec b) { return {_mm256_permute2f128_ps(a.v, b.v, 0x20)}; }
inline Vec upper_halves(Vec a, Vec b) { return {_mm256_permute2f128_ps(a.v, b.v, 0x31)}; }

inline void transpose(Vec (&r)[8]) {
  Vec t[8];
  transpose_fours(r);
  for (int i = 0; i < 4; ++i) t[i] = r[i], t[4 + i] = r[4 + i];
  for (int i = 0; i < 4; ++i) {
    r[i] = lower_halves(t[i], t[4 + i]);
    r[4 + i] = upper_halves(t[i], t[4 + i]);
  }
}

template <class F>
inline __attribute__((always_inline)) Vec sums(const F& vector) {
  Vec q[2];
  ACDC_UNROLL
  for (int t = 0; t < 2; ++t) q[t] = sums_of_four(vector, 4 * t);
  return Vec::add(lower_halves(q[0], q[1]), upper_halves(q[0], q[1]));
}

constexpr int kRows = 2;
inline void add_steps(Vec sum, float* p, int steps) {
  float each[8];
  sum.store(each);
  for (int t = 0; t < steps; ++t) {
    p[4 * t] += each[2 * t];
    p[4 * t + 1] += each[2 * t + 1];
  }
}

#else

struct Vec {
  static constexpr int lanes = 4;
  typedef float Four __attribute__((vector_size(16)));  // SSE, NEON, or what the compiler makes of it
  Four v;
  static Vec zero() { return {Four{0, 0, 0, 0}}; }
  static Vec splat(float x) { return {Four{x, x, x, x}}; }
  static Vec load(const float* p) {
    Vec r;
    std::memcpy(&r.v, p, 16);
    return r;
  }
  void store(float* p) const { std::memcpy(p, &v, 16); }
  static Vec mul(Vec a, Vec b) { return {a.v * b.v}; }
  static Vec add(Vec a, Vec b) { return {a.v + b.v}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  float sum() const { return (v[0] + v[2]) + (v[1] + v[3]); }
};

inline void transpose(Vec (&r)[4]) {
  float a[4][4], b[4][4];
  std::memcpy(a, r, sizeof(a));
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) b[i][j] = a[j][i];
  std::memcpy(r, b, sizeof(b));
}

template <class F>
inline __attribute__((always_inline)) Vec sums(const F& vector) {
  Vec r;
  ACDC_UNROLL
  for (int i = 0; i < 4; ++i) r.v[i] = vector(i).sum();
  return r;
}

constexpr int kRows = 1;
inline void add_steps(Vec sum, float* p, int steps) {
  for (int t = 0; t < steps; ++t) p[4 * t] += sum.v[t];
}

#endif

}  // namespace
}  // namespace acdc
