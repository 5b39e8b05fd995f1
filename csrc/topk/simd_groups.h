// Rotations of keys within groups of 2, 4 or 8 neighbouring lanes, for the ISA level that this file is compiled at.
// Included by ISA files only: everything sits in an anonymous namespace.
#pragma once
#include "common/simd_keys.h"

namespace acdc {
namespace {

// Turn<U>(from)(k): lane i gets the key of lane from[i], which is in the same group of 8.
#if defined(__AVX512F__)

template <class U> struct Turn;
template <> struct Turn<uint16_t> {
  __m512i from;
  Turn() = default;
  explicit Turn(const uint16_t* p) : from(_mm512_loadu_si512(p)) {}
  Keys<uint16_t> operator()(Keys<uint16_t> k) const { return {_mm512_permutexvar_epi16(from, k.v)}; }
};
template <> struct Turn<uint32_t> {
  __m512i from;
  Turn() = default;
  explicit Turn(const uint32_t* p) : from(_mm512_loadu_si512(p)) {}
  Keys<uint32_t> operator()(Keys<uint32_t> k) const { return {_mm512_permutexvar_epi32(from, k.v)}; }
};
template <> struct Turn<uint64_t> {
  __m512i from;
  Turn() = default;
  explicit Turn(const uint64_t* p) : from(_mm512_loadu_si512(p)) {}
  Keys<uint64_t> operator()(Keys<uint64_t> k) const { return {_mm512_permutexvar_epi64(from, k.v)}; }
};
inline Keys<uint16_t> plus(Keys<uint16_t> a, Keys<uint16_t> b) { return {_mm512_add_epi16(a.v, b.v)}; }
inline Keys<uint32_t> plus(Keys<uint32_t> a, Keys<uint32_t> b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Keys<uint64_t> plus(Keys<uint64_t> a, Keys<uint64_t> b) { return {_mm512_add_epi64(a.v, b.v)}; }

#elif defined(__AVX2__)

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

template <class U> struct Turn;
template <> struct Turn<uint16_t> {
  __m256i from;  // byte numbers within each half of 8 lanes
  Turn() = default;
  explicit Turn(const uint16_t* p) {
    uint8_t bytes[32];
    for (int i = 0; i < 32; ++i) bytes[i] = static_cast<uint8_t>(p[i / 2] % 8 * 2 + i % 2);
    from = load256(bytes);
  }
  Keys<uint16_t> operator()(Keys<uint16_t> k) const { return {_mm256_shuffle_epi8(k.v, from)}; }
};
template <> struct Turn<uint32_t> {
  __m256i from;
  Turn() = default;
  explicit Turn(const uint32_t* p) : from(load256(p)) {}
  Keys<uint32_t> operator()(Keys<uint32_t> k) const { return {_mm256_permutevar8x32_epi32(k.v, from)}; }
};
template <> struct Turn<uint64_t> {
  uint64_t from[8];
  Turn() = default;
  explicit Turn(const uint64_t* p) { std::memcpy(from, p, sizeof(from)); }
  Keys<uint64_t> operator()(Keys<uint64_t> k) const {
    uint64_t all[8], turned[8];
    k.store(all);
    for (int i = 0; i < 8; ++i) turned[i] = all[from[i]];
    return Keys<uint64_t>::load(turned);
  }
};
inline Keys<uint16_t> plus(Keys<uint16_t> a, Keys<uint16_t> b) { return {_mm256_add_epi16(a.v, b.v)}; }
inline Keys<uint32_t> plus(Keys<uint32_t> a, Keys<uint32_t> b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Keys<uint64_t> plus(Keys<uint64_t> a, Keys<uint64_t> b) {
  return {{_mm256_add_epi64(a.v[0], b.v[0]), _mm256_add_epi64(a.v[1], b.v[1])}};
}

#else

template <class U> struct Turn {
  U from[Keys<U>::lanes];
  Turn() = default;
  explicit Turn(const U* p) { std::memcpy(from, p, sizeof(from)); }
  Keys<U> operator()(Keys<U> k) const {
    Keys<U> turned;
    for (int i = 0; i < Keys<U>::lanes; ++i) turned.v[i] = k.v[from[i]];
    return turned;
  }
};
template <class U> inline Keys<U> plus(Keys<U> a, Keys<U> b) {
  for (int i = 0; i < Keys<U>::lanes; ++i) a.v[i] = static_cast<U>(a.v[i] + b.v[i]);
  return a;
}

#endif

// of(k, r): lane i of each group of M gets the key of lane (i + r + 1) % M, plus 1 where that lane comes before i. Keys are integers, so
// "of(k, r) > k" then means "larger, or as large and earlier".
template <class U, int M>
class Rivals {
  static constexpr int L = Keys<U>::lanes;

 public:
  Rivals() {
    for (int r = 0; r < M - 1; ++r) {
      U from[L], earlier[L];
      for (int i = 0; i < L; ++i) {
        from[i] = static_cast<U>(i - i % M + (i % M + r + 1) % M);
        earlier[i] = i % M + r + 1 >= M;
      }
      from_[r] = Turn<U>(from);
      earlier_[r] = Keys<U>::load(earlier);
    }
  }
  Keys<U> of(Keys<U> k, int r) const { return plus(from_[r](k), earlier_[r]); }

 private:
  Turn<U> from_[M - 1];
  Keys<U> earlier_[M - 1];
};

}  // namespace
}  // namespace acdc
