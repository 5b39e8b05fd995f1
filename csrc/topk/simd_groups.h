// Rotations of keys within groups of 2, 4 or 8 neighbouring lanes, for the ISA level that this file is compiled at.
// Included by ISA files only: everything sits in an anonymous namespace.
#pragma once
#include "common/simd_keys.h"

namespace acdc {
namespace {

// Lane i of each group of M gets the key of lane (i + by) % M, plus 1 where that lane comes before i: keys are integers, so
// "rotated > key" then means "larger, or as large and earlier".
template <class U, int M>
struct Rival {
  static constexpr int lanes = Keys<U>::lanes;
  U from[lanes], earlier[lanes];
  explicit Rival(int by) {
    for (int i = 0; i < lanes; ++i) {
      const int in_group = i % M;
      from[i] = static_cast<U>(i - in_group + (in_group + by) % M);
      earlier[i] = in_group + by >= M;
    }
  }
};

#if defined(__AVX512F__)

template <int M> inline Keys<uint16_t> rotated(Keys<uint16_t> k, const Rival<uint16_t, M>& r) {
  return {_mm512_add_epi16(_mm512_permutexvar_epi16(_mm512_loadu_si512(r.from), k.v), _mm512_loadu_si512(r.earlier))};
}
template <int M> inline Keys<uint32_t> rotated(Keys<uint32_t> k, const Rival<uint32_t, M>& r) {
  return {_mm512_add_epi32(_mm512_permutexvar_epi32(_mm512_loadu_si512(r.from), k.v), _mm512_loadu_si512(r.earlier))};
}
template <int M> inline Keys<uint64_t> rotated(Keys<uint64_t> k, const Rival<uint64_t, M>& r) {
  return {_mm512_add_epi64(_mm512_permutexvar_epi64(_mm512_loadu_si512(r.from), k.v), _mm512_loadu_si512(r.earlier))};
}

#elif defined(__AVX2__)

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

template <int M> inline Keys<uint16_t> rotated(Keys<uint16_t> k, const Rival<uint16_t, M>& r) {
  // Byte numbers within each half of 8 lanes: lane f is the bytes 2f and 2f + 1.
  const __m256i low = _mm256_slli_epi16(_mm256_and_si256(load256(r.from), _mm256_set1_epi16(7)), 1);
  const __m256i bytes = _mm256_or_si256(low, _mm256_slli_epi16(_mm256_add_epi16(low, _mm256_set1_epi16(1)), 8));
  return {_mm256_add_epi16(_mm256_shuffle_epi8(k.v, bytes), load256(r.earlier))};
}
template <int M> inline Keys<uint32_t> rotated(Keys<uint32_t> k, const Rival<uint32_t, M>& r) {
  return {_mm256_add_epi32(_mm256_permutevar8x32_epi32(k.v, load256(r.from)), load256(r.earlier))};
}
template <int M> inline Keys<uint64_t> rotated(Keys<uint64_t> k, const Rival<uint64_t, M>& r) {
  uint64_t all[8], turned[8];
  k.store(all);
  for (int i = 0; i < 8; ++i) turned[i] = all[r.from[i]] + r.earlier[i];
  return Keys<uint64_t>::load(turned);
}

#else

template <class U, int M> inline Keys<U> rotated(Keys<U> k, const Rival<U, M>& r) {
  Keys<U> turned;
  for (int i = 0; i < Keys<U>::lanes; ++i) turned.v[i] = static_cast<U>(k.v[r.from[i]] + r.earlier[i]);
  return turned;
}

#endif

}  // namespace
}  // namespace acdc
