#include "mask_bits/mask_bits.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/chunks.h"

namespace acdc {
namespace {

constexpr int32_t kChunk = 65536;
constexpr int64_t kBlock = 4096;

// Eight bytes of a bool tensor to one byte of bits: the product gathers bit 0 of each byte in the top byte.
uint8_t pack8(const uint8_t* mask) {
  uint64_t x;
  std::memcpy(&x, mask, 8);
  x |= x >> 4;
  x |= x >> 2;
  x |= x >> 1;  // any set bit of a byte reaches its bit 0; what spills in from above stays out of bit 0
  return static_cast<uint8_t>(((x & 0x0101010101010101ull) * 0x0102040810204080ull) >> 56);
}

void pack_row(const uint8_t* mask, int64_t n, uint8_t* bits) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) bits[i / 8] = pack8(mask + i);
  if (i < n) {
    uint8_t tail[8] = {};
    std::memcpy(tail, mask + i, static_cast<size_t>(n - i));
    bits[i / 8] = pack8(tail);
  }
}

template <class U>
void apply_row(U* p, int64_t n, const uint8_t* bits) {
  for (int64_t i = 0; i < n; i += 8) {
    const uint8_t m = bits[i / 8];
    if (m == 0xff) continue;
    const int64_t last = std::min<int64_t>(8, n - i);
    for (int64_t j = 0; j < last; ++j) p[i + j] &= static_cast<U>(U{0} - static_cast<U>((m >> j) & 1));
  }
}

template <class U>
void apply_chunk(const MaskedTensor& t, const Chunk& c) {
  const uint8_t* bits = t.bits + c.begin / 8;
  if (t.tensor.contiguous) return apply_row(static_cast<U*>(t.tensor.data) + c.begin, c.count, bits);
  U block[kBlock];
  for (int64_t at = 0; at < c.count; at += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, c.count - at);
    gather(t.tensor, c.begin + at, n, block);
    apply_row(block, n, bits + at / 8);
    scatter(t.tensor, c.begin + at, n, block);
  }
}

}  // namespace

void pack_mask_cpu(const TensorRef& mask, uint8_t* bits, const Pool& pool) {
  const std::vector<Chunk> chunks = make_chunks(1, [&](int) { return mask.numel; }, kChunk);
  for_each_item(pool.for_elements(mask.numel), static_cast<int64_t>(chunks.size()), [&](int, int64_t i) {
    const Chunk& c = chunks[i];
    uint8_t* out = bits + c.begin / 8;
    if (mask.contiguous) return pack_row(static_cast<const uint8_t*>(mask.data) + c.begin, c.count, out);
    uint8_t block[kBlock];
    for (int64_t at = 0; at < c.count; at += kBlock) {
      const int64_t n = std::min<int64_t>(kBlock, c.count - at);
      gather(mask, c.begin + at, n, block);
      pack_row(block, n, out + at / 8);
    }
  });
}

void unpack_mask_cpu(const uint8_t* bits, uint8_t* mask, int64_t numel, const Pool& pool) {
  const std::vector<Chunk> chunks = make_chunks(1, [&](int) { return numel; }, kChunk);
  for_each_item(pool.for_elements(numel), static_cast<int64_t>(chunks.size()), [&](int, int64_t i) {
    const Chunk& c = chunks[i];
    for (int64_t e = c.begin; e < c.begin + c.count; ++e) mask[e] = (bits[e >> 3] >> (e & 7)) & 1;
  });
}

void apply_mask_cpu(const MaskedTensor* tensors, int count, const Pool& pool) {
  const std::vector<Chunk> chunks = make_chunks(count, [&](int t) { return tensors[t].tensor.numel; }, kChunk);
  int64_t numel = 0;
  for (const Chunk& c : chunks) numel += c.count;
  for_each_item(pool.for_elements(numel), static_cast<int64_t>(chunks.size()), [&](int, int64_t i) {
    const MaskedTensor& t = tensors[chunks[i].tensor];
    if (t.element_bytes == 8) return apply_chunk<uint64_t>(t, chunks[i]);
    if (t.element_bytes == 4) return apply_chunk<uint32_t>(t, chunks[i]);
    apply_chunk<uint16_t>(t, chunks[i]);
  });
}

}  // namespace acdc
