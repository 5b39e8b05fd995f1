// Walking the set bits of a mask, 64 at a time.
#pragma once
#include <cstdint>
#include <cstring>

namespace acdc {

// A mask of `elements` bits; reads no byte beyond the last one.
class MaskWords {
 public:
  MaskWords(const uint8_t* bits, int64_t elements) : bits_(bits), elements_(elements), bytes_((elements + 7) / 8) {}

  // Bits [64 * i, 64 * i + 64); those beyond the end are 0.
  uint64_t word(int64_t i) const {
    uint64_t w = 0;
    const int64_t at = 8 * i;
    std::memcpy(&w, bits_ + at, static_cast<size_t>(at + 8 <= bytes_ ? 8 : bytes_ - at));  // little-endian, as the format is
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

  int64_t count(int64_t begin, int64_t end) const {
    int64_t n = 0;
    for_each_word(begin, end, [&](uint64_t w, int64_t) { n += __builtin_popcountll(w); });
    return n;
  }

 private:
  const uint8_t* bits_;
  int64_t elements_, bytes_;
};

}  // namespace acdc
