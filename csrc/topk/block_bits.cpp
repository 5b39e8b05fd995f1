#include "topk/block_bits.h"

#include <cstring>

namespace acdc {
namespace {

// Up to 57 bits from bit `at` on; `end` is where the bytes that may be read end.
uint64_t read_bits(const uint8_t* bits, int64_t at, int n, const uint8_t* end) {
  const uint8_t* p = bits + (at >> 3);
  uint64_t word = 0;
  std::memcpy(&word, p, end - p >= 8 ? 8 : static_cast<size_t>(end - p));
  return word >> (at & 7) & ((uint64_t{1} << n) - 1);
}

// Appends bits behind bit `at`. What the first byte holds before `at` becomes 0, and what the last one holds after the end stays.
class Writer {
 public:
  Writer(uint8_t* bits, int64_t at) : out_(bits + (at >> 3)), filled_(static_cast<int>(at & 7)) {}
  void append(uint64_t bits, int n) {  // n <= 32
    pending_ |= bits << filled_;
    for (filled_ += n; filled_ >= 32; filled_ -= 32, pending_ >>= 32, out_ += 4) {
      const auto word = static_cast<uint32_t>(pending_);
      std::memcpy(out_, &word, 4);
    }
  }
  void repeat(bool bit, int64_t n) {
    for (; n > 0; n -= 32) append(bit ? 0xffffffffu >> (n < 32 ? 32 - n : 0) : 0, static_cast<int>(n < 32 ? n : 32));
  }
  ~Writer() {
    for (; filled_ >= 8; filled_ -= 8, pending_ >>= 8) *out_++ = static_cast<uint8_t>(pending_);
    if (filled_ > 0) *out_ = static_cast<uint8_t>((*out_ & ~((1u << filled_) - 1)) | pending_);
  }

 private:
  uint8_t* out_;
  int filled_;
  uint64_t pending_ = 0;
};

// Bytes to words of 8 * columns bits, each bit `columns` times.
struct Repeated {
  uint64_t words[256];
  explicit Repeated(int columns) {
    for (int byte = 0; byte < 256; ++byte) {
      words[byte] = 0;
      for (int bit = 0; bit < 8; ++bit)
        for (int c = 0; c < columns; ++c) words[byte] |= static_cast<uint64_t>(byte >> bit & 1) << (bit * columns + c);
    }
  }
};

}  // namespace

void spread_block_bits(const Axes& axes, BlockShape block, uint8_t* bits) {
  const int64_t row = axes.inputs * axes.kernel, band = axes.inputs / block.columns * axes.kernel;  // weights, blocks
  if (block.rows * block.columns == 1 || row == 0 || axes.outputs == 0) return;
  const bool by_byte = axes.kernel == 1 && block.columns <= 8;
  const Repeated repeated(by_byte ? static_cast<int>(block.columns) : 1);

  int64_t o = axes.outputs - 1;
  // Rows whose bytes all lie behind the bits of blocks that they and the rows before them need.
  for (; o * row / 8 >= ((o / block.rows + 1) * band + 7) / 8; --o) {
    const int64_t from = o / block.rows * band;
    const uint8_t* const end = bits + o * row / 8;
    if (o == axes.outputs - 1) bits[((o + 1) * row - 1) / 8] = 0;
    if (block.columns == 1 && row % 8 == 0) {
      std::memcpy(bits + o * row / 8, bits + from / 8, static_cast<size_t>(row / 8));
      continue;
    }
    Writer out(bits, o * row);
    if (block.columns == 1) {
      for (int64_t i = 0; i < row; i += 32) {
        const int n = static_cast<int>(row - i < 32 ? row - i : 32);
        out.append(read_bits(bits, from + i, n, end), n);
      }
    } else if (by_byte) {
      for (int64_t i = 0; i < band; i += 8) {
        const int n = static_cast<int>(band - i < 8 ? band - i : 8), all = n * static_cast<int>(block.columns);
        const uint64_t word = repeated.words[read_bits(bits, from + i, n, end)];
        out.append(word & 0xffffffffu, all < 32 ? all : 32);
        if (all > 32) out.append(word >> 32, all - 32);
      }
    } else if (axes.kernel == 1) {
      for (int64_t i = 0; i < band; ++i) out.repeat(bits[(from + i) >> 3] >> ((from + i) & 7) & 1, block.columns);
    } else {
      for (int64_t i = 0; i < band; i += axes.kernel)
        for (int64_t c = 0; c < block.columns; ++c)
          for (int64_t k = 0; k < axes.kernel; k += 32) {
            const int n = static_cast<int>(axes.kernel - k < 32 ? axes.kernel - k : 32);
            out.append(read_bits(bits, from + i + k, n, end), n);
          }
    }
  }
  if (o == 0 && block.columns == 1 && row % 8 == 0) return;  // its bits are in place
  // The first rows, a bit at a time: a byte is written once all that it needs, none of it behind it, has been read.
  int64_t e = (o + 1) * row - 1;
  uint8_t byte = 0;
  if (o < axes.outputs - 1) byte = static_cast<uint8_t>(bits[e >> 3] & ~((2u << (e & 7)) - 1));
  for (; o >= 0; --o)
    for (int64_t i = band - axes.kernel; i >= 0; i -= axes.kernel)
      for (int64_t c = 0; c < block.columns; ++c)
        for (int64_t k = axes.kernel - 1; k >= 0; --k, --e) {
          const int64_t from = o / block.rows * band + i + k;
          byte = static_cast<uint8_t>(byte | (bits[from >> 3] >> (from & 7) & 1) << (e & 7));
          if (e & 7) continue;
          bits[e >> 3] = byte;
          byte = 0;
        }
}

}  // namespace acdc
