// Reading a mask 64 bits at a time, from any bit on, and counting, listing and transposing such words.
#pragma once
#include <cstdint>
#include <cstring>

namespace acdc {

// Byte i: how many bits are set in bytes 0 to i of w. (Without an instruction for it, __builtin_popcountll would be a call.)
inline uint64_t running_counts(uint64_t w) {
  w -= w >> 1 & 0x5555555555555555u;
  w = (w & 0x3333333333333333u) + (w >> 2 & 0x3333333333333333u);
  return ((w + (w >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u;
}

inline int popcount(uint64_t w) {
#if defined(__POPCNT__) || defined(__aarch64__)
  return __builtin_popcountll(w);
#else
  return static_cast<int>(running_counts(w) >> 56);
#endif
}

typedef uint16_t Eight __attribute__((vector_size(16)));  // SSE2, NEON, or what the compiler makes of it

struct ByteLists {
  uint16_t bits[256][8] = {};  // the set bits of every byte, in order, and zeros

  constexpr ByteLists() {
    for (int byte = 0; byte < 256; ++byte)
      for (int bit = 0, n = 0; bit < 8; ++bit)
        if (byte >> bit & 1) bits[byte][n++] = static_cast<uint16_t>(bit);
  }
};
alignas(64) inline constexpr ByteLists kByteLists;

constexpr int kListSlack = 8;  // what list_word may write after a list's end

// The set bits of w in order, `base` added, to `out`; returns the list's end. Every byte's eight places are written, without looking how many
// are set: a loop over so few would mostly wait for mispredicted ends.
inline uint16_t* list_word(uint64_t w, int base, uint16_t* out) {
  const uint64_t ends = running_counts(w), begins = ends << 8;
  for (int i = 0; i < 8; ++i) {
    Eight list;
    std::memcpy(&list, kByteLists.bits[w >> 8 * i & 255], 16);
    list += static_cast<uint16_t>(base + 8 * i);
    std::memcpy(out + (begins >> 8 * i & 255), &list, 16);
  }
  return out + (ends >> 56);
}

// Bit j of word i <-> bit i of word j, in steps that swap squares of `half` bits.
template <int half = 32>
void transpose(uint64_t (&w)[64]) {
  constexpr uint64_t low = ~uint64_t{0} / ((uint64_t{1} << half) + 1);
  for (int i = 0; i < 64; i += 2 * half)
    for (int j = i; j < i + half; ++j) {
      const uint64_t swap = (w[j] >> half ^ w[j + half]) & low;
      w[j] ^= swap << half;
      w[j + half] ^= swap;
    }
  if constexpr (half > 1) transpose<half / 2>(w);
}

// A mask of `elements` bits; reads no byte beyond the last one.
class MaskWords {
 public:
  MaskWords(const uint8_t* bits, int64_t elements) : bits_(bits), bytes_((elements + 7) / 8) {}

  // Bits [begin, begin + 64); those from `end` on are 0.
  uint64_t at(int64_t begin, int64_t end) const {
    const int64_t byte = begin >> 3, skip = begin & 7;
    uint64_t w = 0;
    if (byte + 9 <= bytes_) {
      std::memcpy(&w, bits_ + byte, 8);  // little-endian, as the format is
      w = w >> skip | uint64_t{bits_[byte + 8]} << 1 << (63 - skip);
    } else {
      for (int64_t b = byte; b < bytes_; ++b) w |= uint64_t{bits_[b]} << 8 * (b - byte);
      w >>= skip;
    }
    return end - begin < 64 ? w & ((uint64_t{1} << (end - begin)) - 1) : w;
  }

  // The set bits of [begin, end) as distances from begin, in order, and how many; `list` has room for those and kListSlack more.
  int list(int64_t begin, int64_t end, uint16_t* list) const {
    uint16_t* out = list;
    for (int64_t i = begin; i < end; i += 64) out = list_word(at(i, end), static_cast<int>(i - begin), out);
    return static_cast<int>(out - list);
  }

  int64_t count(int64_t begin, int64_t end) const {
    int64_t n = 0;
    for (int64_t i = begin; i < end; i += 64) n += popcount(at(i, end));
    return n;
  }

 private:
  const uint8_t* bits_;
  int64_t bytes_;
};

}  // namespace acdc
