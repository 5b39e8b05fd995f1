// Vectors of float and double for the ISA level that this file is compiled at, with loads and stores of 16-bit types, and mask bits
// as lane masks. Included by ISA files only: everything sits in an anonymous namespace.
//
// The AVX-512 level has 256-bit vectors too, with its lane masks: the updates wait for memory, and two half stores finish sooner
// than a full one (7% on Zen 4).
// fma rounds once where the level has the instruction; at the generic level it is a product and a sum.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/half.h"

namespace acdc {
namespace {

#if defined(__AVX2__)

struct VecF {
  static constexpr int lanes = 8;
  using Scalar = float;
  __m256 v;
  static VecF splat(float x) { return {_mm256_set1_ps(x)}; }
  static VecF load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static VecF load(const bf16* p) {
    __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))};
  }
  static VecF load(const f16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(bf16* p) const {
    __m256i u = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  void store(f16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
  static VecF mul(VecF a, VecF b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static VecF add(VecF a, VecF b) { return {_mm256_add_ps(a.v, b.v)}; }
  static VecF sub(VecF a, VecF b) { return {_mm256_sub_ps(a.v, b.v)}; }
  static VecF div(VecF a, VecF b) { return {_mm256_div_ps(a.v, b.v)}; }
  static VecF sqrt(VecF a) { return {_mm256_sqrt_ps(a.v)}; }
  // NaN if either is: the instruction gives b then, which is NaN if b is.
  static VecF max(VecF a, VecF b) { return {_mm256_blendv_ps(_mm256_max_ps(a.v, b.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))}; }
  static VecF fma(VecF a, VecF b, VecF c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  VecF flip(VecF sign) const { return {_mm256_xor_ps(v, sign.v)}; }
  VecF kept(const uint8_t* bits) const {
#if defined(__AVX512VL__)
    return {_mm256_maskz_mov_ps(*bits, v)};
#else
    const __m256i each = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
    __m256i m = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(*bits), each), each);
    return {_mm256_and_ps(v, _mm256_castsi256_ps(m))};
#endif
  }
};

struct VecD {
  static constexpr int lanes = 8;
  using Scalar = double;
  __m256d v[2];
  static VecD splat(double x) { return {{_mm256_set1_pd(x), _mm256_set1_pd(x)}}; }
  static VecD load(const double* p) { return {{_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}}; }
  void store(double* p) const {
    _mm256_storeu_pd(p, v[0]);
    _mm256_storeu_pd(p + 4, v[1]);
  }
  static VecD mul(VecD a, VecD b) { return {{_mm256_mul_pd(a.v[0], b.v[0]), _mm256_mul_pd(a.v[1], b.v[1])}}; }
  static VecD add(VecD a, VecD b) { return {{_mm256_add_pd(a.v[0], b.v[0]), _mm256_add_pd(a.v[1], b.v[1])}}; }
  static VecD sub(VecD a, VecD b) { return {{_mm256_sub_pd(a.v[0], b.v[0]), _mm256_sub_pd(a.v[1], b.v[1])}}; }
  static VecD div(VecD a, VecD b) { return {{_mm256_div_pd(a.v[0], b.v[0]), _mm256_div_pd(a.v[1], b.v[1])}}; }
  static VecD sqrt(VecD a) { return {{_mm256_sqrt_pd(a.v[0]), _mm256_sqrt_pd(a.v[1])}}; }
  static VecD max(VecD a, VecD b) {
    for (int i = 0; i < 2; ++i)
      a.v[i] = _mm256_blendv_pd(_mm256_max_pd(a.v[i], b.v[i]), a.v[i], _mm256_cmp_pd(a.v[i], a.v[i], _CMP_UNORD_Q));
    return a;
  }
  static VecD fma(VecD a, VecD b, VecD c) {
    return {{_mm256_fmadd_pd(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_pd(a.v[1], b.v[1], c.v[1])}};
  }
  VecD flip(VecD sign) const { return {{_mm256_xor_pd(v[0], sign.v[0]), _mm256_xor_pd(v[1], sign.v[1])}}; }
  VecD kept(const uint8_t* bits) const {
#if defined(__AVX512VL__)
    return {{_mm256_maskz_mov_pd(*bits & 15, v[0]), _mm256_maskz_mov_pd(*bits >> 4, v[1])}};
#else
    const __m256i low = _mm256_set_epi64x(8, 4, 2, 1), high = _mm256_set_epi64x(128, 64, 32, 16), b = _mm256_set1_epi64x(*bits);
    return {{_mm256_and_pd(v[0], _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(b, low), low))),
             _mm256_and_pd(v[1], _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(b, high), high)))}};
#endif
  }
};

#else

template <class S, class Bits>
struct VecPortable {
  static constexpr int lanes = 8;
  using Scalar = S;
  S v[8];
  static VecPortable splat(S x) {
    VecPortable r;
    for (S& e : r.v) e = x;
    return r;
  }
  static VecPortable load(const S* p) {
    VecPortable r;
    std::memcpy(r.v, p, sizeof(r.v));
    return r;
  }
  template <class H>
  static VecPortable load(const H* p) {
    VecPortable r;
    for (int i = 0; i < 8; ++i) r.v[i] = widen(p[i]);
    return r;
  }
  void store(S* p) const { std::memcpy(p, v, sizeof(v)); }
  void store(bf16* p) const {
    for (int i = 0; i < 8; ++i) p[i] = narrow_bf16(static_cast<float>(v[i]));
  }
  void store(f16* p) const {
    for (int i = 0; i < 8; ++i) p[i] = narrow_f16(static_cast<float>(v[i]));
  }
  static VecPortable mul(VecPortable a, VecPortable b) {
    for (int i = 0; i < 8; ++i) a.v[i] *= b.v[i];
    return a;
  }
  static VecPortable add(VecPortable a, VecPortable b) {
    for (int i = 0; i < 8; ++i) a.v[i] += b.v[i];
    return a;
  }
  static VecPortable sub(VecPortable a, VecPortable b) {
    for (int i = 0; i < 8; ++i) a.v[i] -= b.v[i];
    return a;
  }
  static VecPortable div(VecPortable a, VecPortable b) {
    for (int i = 0; i < 8; ++i) a.v[i] /= b.v[i];
    return a;
  }
  static VecPortable sqrt(VecPortable a) {
    for (int i = 0; i < 8; ++i) a.v[i] = std::sqrt(a.v[i]);
    return a;
  }
  static VecPortable max(VecPortable a, VecPortable b) {  // NaN if either is
    for (int i = 0; i < 8; ++i) a.v[i] = a.v[i] > b.v[i] || a.v[i] != a.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static VecPortable fma(VecPortable a, VecPortable b, VecPortable c) {
    for (int i = 0; i < 8; ++i) c.v[i] = a.v[i] * b.v[i] + c.v[i];
    return c;
  }
  VecPortable flip(VecPortable sign) const {
    Bits a[8], s[8];
    VecPortable r;
    std::memcpy(a, v, sizeof(a));
    std::memcpy(s, sign.v, sizeof(s));
    for (int i = 0; i < 8; ++i) a[i] ^= s[i];
    std::memcpy(r.v, a, sizeof(a));
    return r;
  }
  VecPortable kept(const uint8_t* bits) const {
    Bits a[8];
    VecPortable r;
    std::memcpy(a, v, sizeof(a));
    for (int i = 0; i < 8; ++i) a[i] &= Bits{0} - static_cast<Bits>((*bits >> i) & 1);
    std::memcpy(r.v, a, sizeof(a));
    return r;
  }
};
using VecF = VecPortable<float, uint32_t>;
using VecD = VecPortable<double, uint64_t>;

#endif

template <class T> struct VecFor { using type = VecF; };
template <> struct VecFor<double> { using type = VecD; };

}  // namespace
}  // namespace acdc
