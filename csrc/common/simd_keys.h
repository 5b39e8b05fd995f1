// Vectors of unsigned keys for the ISA level that this file is compiled at. Keys are below half of U's range, so signed compares do.
// Included by ISA files only: everything sits in an anonymous namespace and nothing here instantiates a shared template.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace acdc {
namespace {

template <class U>
struct Keys {  // portable: eight elements, one mask byte
  static constexpr int lanes = 8;
  U v[8];
  static Keys load(const U* p) {
    Keys k;
    std::memcpy(k.v, p, sizeof(k.v));
    return k;
  }
  static Keys splat(U x) {
    Keys k;
    for (int i = 0; i < 8; ++i) k.v[i] = x;
    return k;
  }
  Keys magnitude_of(Keys magnitude) const {
    Keys k;
    for (int i = 0; i < 8; ++i) k.v[i] = v[i] & magnitude.v[i];
    return k;
  }
  Keys key(Keys magnitude, Keys nan) const {
    Keys k;
    for (int i = 0; i < 8; ++i) {
      U u = v[i] & magnitude.v[i];
      k.v[i] = u < nan.v[i] ? u : nan.v[i];
    }
    return k;
  }
  static Keys max(Keys a, Keys b) {
    for (int i = 0; i < 8; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static unsigned greater(Keys a, Keys b) {
    unsigned m = 0;
    for (int i = 0; i < 8; ++i) m |= static_cast<unsigned>(a.v[i] > b.v[i]) << i;
    return m;
  }
  static unsigned equal(Keys a, Keys b) {
    unsigned m = 0;
    for (int i = 0; i < 8; ++i) m |= static_cast<unsigned>(a.v[i] == b.v[i]) << i;
    return m;
  }
  U largest() const {
    U m = v[0];
    for (int i = 1; i < 8; ++i) m = v[i] > m ? v[i] : m;
    return m;
  }
  void store(U* p) const { std::memcpy(p, v, sizeof(v)); }
};

#if defined(__AVX512F__)

template <>
struct Keys<uint16_t> {
  static constexpr int lanes = 32;
  __m512i v;
  static Keys load(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
  static Keys splat(uint16_t x) { return {_mm512_set1_epi16(static_cast<short>(x))}; }
  Keys key(Keys magnitude, Keys nan) const { return {_mm512_min_epu16(_mm512_and_si512(v, magnitude.v), nan.v)}; }
  static Keys max(Keys a, Keys b) { return {_mm512_max_epu16(a.v, b.v)}; }
  static uint32_t greater(Keys a, Keys b) { return _mm512_cmpgt_epu16_mask(a.v, b.v); }
  static uint32_t equal(Keys a, Keys b) { return _mm512_cmpeq_epu16_mask(a.v, b.v); }
  void store(uint16_t* p) const { _mm512_storeu_si512(p, v); }
  uint16_t largest() const {
    uint16_t a[32], m = 0;
    store(a);
    for (uint16_t x : a) m = x > m ? x : m;
    return m;
  }
};
template <>
struct Keys<uint32_t> {
  static constexpr int lanes = 16;
  __m512i v;
  static Keys load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
  static Keys splat(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
  Keys magnitude_of(Keys magnitude) const { return {_mm512_and_si512(v, magnitude.v)}; }
  Keys key(Keys magnitude, Keys nan) const { return {_mm512_min_epu32(_mm512_and_si512(v, magnitude.v), nan.v)}; }
  static Keys max(Keys a, Keys b) { return {_mm512_max_epu32(a.v, b.v)}; }
  static uint32_t greater(Keys a, Keys b) { return _mm512_cmpgt_epu32_mask(a.v, b.v); }
  static uint32_t equal(Keys a, Keys b) { return _mm512_cmpeq_epu32_mask(a.v, b.v); }
  uint32_t largest() const { return _mm512_reduce_max_epu32(v); }
  void store(uint32_t* p) const { _mm512_storeu_si512(p, v); }
};
template <>
struct Keys<uint64_t> {
  static constexpr int lanes = 8;
  __m512i v;
  static Keys load(const uint64_t* p) { return {_mm512_loadu_si512(p)}; }
  static Keys splat(uint64_t x) { return {_mm512_set1_epi64(static_cast<long long>(x))}; }
  Keys magnitude_of(Keys magnitude) const { return {_mm512_and_si512(v, magnitude.v)}; }
  Keys key(Keys magnitude, Keys nan) const { return {_mm512_min_epu64(_mm512_and_si512(v, magnitude.v), nan.v)}; }
  static Keys max(Keys a, Keys b) { return {_mm512_max_epu64(a.v, b.v)}; }
  static uint32_t greater(Keys a, Keys b) { return _mm512_cmpgt_epu64_mask(a.v, b.v); }
  static uint32_t equal(Keys a, Keys b) { return _mm512_cmpeq_epu64_mask(a.v, b.v); }
  uint64_t largest() const { return _mm512_reduce_max_epu64(v); }
  void store(uint64_t* p) const { _mm512_storeu_si512(p, v); }
};

#elif defined(__AVX2__)

template <>
struct Keys<uint16_t> {
  static constexpr int lanes = 16;
  __m256i v;
  static Keys load(const uint16_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  static Keys splat(uint16_t x) { return {_mm256_set1_epi16(static_cast<short>(x))}; }
  Keys key(Keys magnitude, Keys nan) const { return {_mm256_min_epu16(_mm256_and_si256(v, magnitude.v), nan.v)}; }
  static Keys max(Keys a, Keys b) { return {_mm256_max_epu16(a.v, b.v)}; }
  static uint32_t lane_bits(__m256i m) {
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    return static_cast<uint32_t>(_mm_movemask_epi8(bytes));
  }
  static uint32_t greater(Keys a, Keys b) { return lane_bits(_mm256_cmpgt_epi16(a.v, b.v)); }
  static uint32_t equal(Keys a, Keys b) { return lane_bits(_mm256_cmpeq_epi16(a.v, b.v)); }
  void store(uint16_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  uint16_t largest() const {
    uint16_t a[16], m = 0;
    store(a);
    for (uint16_t x : a) m = x > m ? x : m;
    return m;
  }
};
template <>
struct Keys<uint32_t> {
  static constexpr int lanes = 8;
  __m256i v;
  static Keys load(const uint32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  static Keys splat(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
  Keys magnitude_of(Keys magnitude) const { return {_mm256_and_si256(v, magnitude.v)}; }
  Keys key(Keys magnitude, Keys nan) const { return {_mm256_min_epu32(_mm256_and_si256(v, magnitude.v), nan.v)}; }
  static Keys max(Keys a, Keys b) { return {_mm256_max_epu32(a.v, b.v)}; }
  static uint32_t greater(Keys a, Keys b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.v, b.v))));
  }
  static uint32_t equal(Keys a, Keys b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, b.v))));
  }
  void store(uint32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  uint32_t largest() const {
    uint32_t a[8], m = 0;
    store(a);
    for (uint32_t x : a) m = x > m ? x : m;
    return m;
  }
};
template <>
struct Keys<uint64_t> {
  static constexpr int lanes = 8;
  __m256i v[2];
  static Keys load(const uint64_t* p) {
    const auto* q = reinterpret_cast<const __m256i*>(p);
    return {{_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)}};
  }
  static Keys splat(uint64_t x) {
    __m256i s = _mm256_set1_epi64x(static_cast<long long>(x));
    return {{s, s}};
  }
  static __m256i pick(__m256i take_b, __m256i a, __m256i b) { return _mm256_blendv_epi8(a, b, take_b); }
  static __m256i one_key(__m256i x, __m256i magnitude, __m256i nan) {
    __m256i u = _mm256_and_si256(x, magnitude);
    return pick(_mm256_cmpgt_epi64(u, nan), u, nan);
  }
  Keys magnitude_of(Keys magnitude) const { return {{_mm256_and_si256(v[0], magnitude.v[0]), _mm256_and_si256(v[1], magnitude.v[1])}}; }
  Keys key(Keys magnitude, Keys nan) const {
    return {{one_key(v[0], magnitude.v[0], nan.v[0]), one_key(v[1], magnitude.v[1], nan.v[1])}};
  }
  static Keys max(Keys a, Keys b) {
    return {{pick(_mm256_cmpgt_epi64(b.v[0], a.v[0]), a.v[0], b.v[0]), pick(_mm256_cmpgt_epi64(b.v[1], a.v[1]), a.v[1], b.v[1])}};
  }
  static uint32_t lane_bits(__m256i low, __m256i high) {
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(low)) |
                                 _mm256_movemask_pd(_mm256_castsi256_pd(high)) << 4);
  }
  static uint32_t greater(Keys a, Keys b) {
    return lane_bits(_mm256_cmpgt_epi64(a.v[0], b.v[0]), _mm256_cmpgt_epi64(a.v[1], b.v[1]));
  }
  static uint32_t equal(Keys a, Keys b) {
    return lane_bits(_mm256_cmpeq_epi64(a.v[0], b.v[0]), _mm256_cmpeq_epi64(a.v[1], b.v[1]));
  }
  void store(uint64_t* p) const {
    auto* q = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(q, v[0]);
    _mm256_storeu_si256(q + 1, v[1]);
  }
  uint64_t largest() const {
    uint64_t a[8], m = 0;
    store(a);
    for (uint64_t x : a) m = x > m ? x : m;
    return m;
  }
};

#endif

}  // namespace
}  // namespace acdc
