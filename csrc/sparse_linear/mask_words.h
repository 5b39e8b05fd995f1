// Walking the set bits of a mask, 64 at a time.
#pragma once
#include <cstdint>
#include <cstring>

namespace acdc {

// Bits set in w; without an instruction for it, __builtin_popcountll would be a call.
inline int popcount(uint64_t w) {
#if defined(__POPCNT__) || defined(__aarch64__)
  return __builtin_popcountll(w);
#else
  w -= w >> 1 & 0x5555555555555555u;
  w = (w & 0x3333333333333333u) + (w >> 2 & 0x3333333333333333u);
  return static_cast<int>(((w + (w >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
#endif
}

// A mask of `elements` bits; reads no byte beyond the last one.
class MaskWords {
 public:
  MaskWords(const uint8_t* bits, int64_t elements) : bits_(bits), elements_(elements), bytes_((elements + 7) / 8) {}

  // Bits [64 * i, 64 * i + 64); those beyond the end are 0.
  uint64_t word(int64_t i) const {
    uint64_t w = 0;
    if (8 * i + 8 <= bytes_) std::memcpy(&w, bits_ + 8 * i, 8);  // little-endian, as the format is
    else for (int64_t b = 8 * i; b < bytes_; ++b) w |= uint64_t{bits_[b]} << 8 * (b & 7);
    const int64_t left = elements_ - 64 * i;
    return left < 64 ? w & ((uint64_t{1} << left) - 1) : w;
  }

  // f(word, first element of the word) for the words that hold [begin, end), with the others' bits cleared.
  template <class F>
  void for_each_word(int64_t begin, int64_t end, const F& f) const {
    if (begin >= end) return;
    const int64_t last = (end - 1) >> 6;
    for (int64_t i = begin >> 6; i <= last; ++i) {
      uint64_t w = word(i);
      if (64 * i < begin) w &= ~uint64_t{0} << (begin - 64 * i);
      if (end - 64 * i < 64) w &= (uint64_t{1} << (end - 64 * i)) - 1;
      f(w, 64 * i);
    }
  }

  // f(element) for every set bit of [begin, end), in order.
  template <class F>
  void for_each_set(int64_t begin, int64_t end, const F& f) const {
    for_each_word(begin, end, [&](uint64_t w, int64_t first) {
      for (; w != 0; w &= w - 1) f(first + __builtin_ctzll(w));
    });
  }

  // The set bits of [begin, end) as distances from begin, in order, and how many; `list` has room for end - begin and kListSlack more.
  // Eight at a time without looking, because a loop over so few bits would mostly wait for mispredicted ends.
  static constexpr int kListSlack = 8;
  int list(int64_t begin, int64_t end, uint16_t* list) const {
    uint16_t* out = list;
    for_each_word(begin, end, [&](uint64_t w, int64_t first) {
      const int base = static_cast<int>(first - begin);
      for (int left = popcount(w), n = 0; left > 0; left -= 8, out += n) {
        n = left < 8 ? left : 8;
        for (int i = 0; i < 8; ++i, w &= w - 1) out[i] = static_cast<uint16_t>(base + __builtin_ctzll(w | uint64_t{1} << 63));
      }
    });
    return static_cast<int>(out - list);
  }

  int64_t count(int64_t begin, int64_t end) const {
    int64_t n = 0;
    for_each_word(begin, end, [&](uint64_t w, int64_t) { n += popcount(w); });
    return n;
  }

 private:
  const uint8_t* bits_;
  int64_t elements_, bytes_;
};

}  // namespace acdc
