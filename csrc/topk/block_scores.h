// The scores of blocks, by a thread or a warp each. For block.cu; everything sits in an anonymous namespace.
#pragma once
#include "topk/pattern_tables.h"

namespace acdc {
namespace {

struct BlockEntry {  // its first five: selection_cuda.h's
  uint8_t* bits;
  int64_t numel, first_item, first_chunk;  // of blocks
  int64_t* nan_count;
  const void* data;
  int64_t score;  // where its scores begin among the stored
  Strides at;
};

// A Source of selection_cuda.h: scores computed as they are read.
template <class U>
struct Scores {
  using Key = uint64_t;
  using Entry = BlockEntry;
  const Entry* table;
  int64_t entries;
  const Layout* layouts;
  BlockShape block;
  double size, inverse;  // inverse: 0 where size is not a power of two; where it is, multiplying by it rounds as dividing does
  bool bf16;

  // The first weight of block i.
  __device__ const U* first(const Entry& e, int64_t i) const {
    const Strides& s = e.at;
    const int64_t across = divide(s.inputs, block.columns), stretch = divide(i, s.kernel), band = divide(stretch, across);
    return static_cast<const U*>(e.data) + band * block.rows * s.output + (stretch - band * across) * block.columns * s.input +
           place_of(s, layouts, i - stretch * s.kernel);
  }
  // Whether a block's rows can be read 16 bytes at a time.
  __device__ bool wide(const Entry& e) const { return e.at.plain && e.at.kernel == 1 && block.columns % kItems<U> == 0; }
  __device__ uint64_t key(double sum) const {
    const double score = inverse != 0 ? __dmul_rn(sum, inverse) : __ddiv_rn(sum, size);
    return static_cast<uint64_t>(__double_as_longlong(score)) & kMagnitude<uint64_t>;
  }
  __device__ uint64_t magnitude(const Entry& e, int64_t i) const {
    const Strides& s = e.at;
    const U* p = first(e, i);
    double sum = 0;
    if (wide(e)) {
      for (int64_t r = 0; r < block.rows; ++r, p += s.output) {
        for (int64_t c = 0; c < block.columns; c += kItems<U>) {
          const Bytes16 v = load16(reinterpret_cast<const Bytes16*>(p + c));
          ACDC_UNROLLED
          for (int k = 0; k < kItems<U>; ++k) sum = __dadd_rn(sum, magnitude_of(item<U>(v, k), bf16));
        }
      }
    } else if (block.columns == 1) {
      for (int64_t r = 0; r < block.rows; ++r) sum = __dadd_rn(sum, magnitude_of(p[r * s.output], bf16));
    } else {
      for (int64_t r = 0; r < block.rows; ++r, p += s.output)
        for (int64_t c = 0; c < block.columns; ++c) sum = __dadd_rn(sum, magnitude_of(p[c * s.input], bf16));
    }
    return key(sum);
  }
  __device__ const uint64_t* plain(const Entry&) const { return nullptr; }
};

// The same, stored before.
struct StoredScores {
  using Key = uint64_t;
  using Entry = BlockEntry;
  const Entry* table;
  int64_t entries;
  const uint64_t* scores;
  __device__ uint64_t magnitude(const Entry& e, int64_t i) const { return scores[e.score + i]; }
  __device__ const uint64_t* plain(const Entry& e) const { return scores + e.score; }
};

constexpr int64_t kSegment = 1024;  // weights that a warp adds at a time
constexpr int kNoPlace = 1 << 16;

// The exponent (biased) of a sum's last place: of the bit of weight 1 in its 53 bits.
__device__ inline int last_place(double x) {
  const int exponent = static_cast<int>(__double_as_longlong(x) >> 52);
  return (exponent > 1 ? exponent : 1) - 52;
}

// That of the last bit of x that is set; larger than any for 0.
__device__ inline int last_bit(double x) {
  const long long u = __double_as_longlong(x);
  return u == 0 ? kNoPlace : last_place(x) + (u << 12 != 0 ? __ffsll(u) - 1 : 52);
}

// A sum in any order, and a place at or below the last bit of everything in it.
struct Loose {
  double sum;
  int place;
  __device__ void add(double x, int digits) {
    sum = __dadd_rn(sum, x);
    const int at = last_place(x) + 52 - digits;
    if (x != 0 && at < place) place = at;
  }
};

// The score of block i by a warp. Summands are not negative and are multiples of 2^place. While the last place of their sum is not above
// that, every partial sum in every order is exact: as soon as one were not, it and all that contain it would have a higher last place. So
// a segment is first added in whatever order, from the sum before it; and where that was not exact, one after another.
template <class U>
__device__ inline uint64_t score_together(const Scores<U>& s, const BlockEntry& e, int64_t i) {
  constexpr int n = kItems<U>, together = sizeof(U) == 2 ? 4 : 8;
  const int lane = static_cast<int>(threadIdx.x & 31), digits = sizeof(U) == 8 ? 52 : sizeof(U) == 4 ? 23 : s.bf16 ? 7 : 10;
  const int64_t columns = s.block.columns, count = s.block.rows * columns;
  const U* first = s.first(e, i);
  const bool wide = s.wide(e);
  auto at = [&](int64_t q) {
    const int64_t r = divide(q, columns);
    return first + r * e.at.output + (q - r * columns) * e.at.input;
  };
  auto weight = [&](int64_t q) { return q < count ? magnitude_of(*at(q), s.bf16) : 0.0; };
  double sum = 0;
  ACDC_ROLLED
  for (int64_t begin = 0; begin < count; begin += kSegment) {
    const int64_t end = smaller(begin + kSegment, count);
    Loose loose{0, kNoPlace};
    if (wide) {
      ACDC_ROLLED
      for (int64_t from = begin; from < end; from += together * 32 * n) {
        Bytes16 v[together];
        ACDC_UNROLLED
        for (int j = 0; j < together; ++j) {
          const int64_t q = from + (j * 32 + lane) * n;
          v[j] = q < end ? load16(reinterpret_cast<const Bytes16*>(at(q))) : Bytes16{};
        }
        ACDC_UNROLLED
        for (int j = 0; j < together * n; ++j) loose.add(magnitude_of(item<U>(v[j / n], j % n), s.bf16), digits);
      }
    } else {
      for (int64_t q = begin + lane; q < end; q += 32) loose.add(weight(q), digits);
    }
    for (int by = 16; by; by /= 2) {
      loose.sum = __dadd_rn(loose.sum, __shfl_xor_sync(kAllLanes, loose.sum, by));
      loose.place = smaller(loose.place, __shfl_xor_sync(kAllLanes, loose.place, by));
    }
    const double total = __dadd_rn(sum, loose.sum);
    if (last_place(total) <= smaller(loose.place, last_bit(sum))) {
      sum = total;
      continue;
    }
    double next = weight(begin + lane);
    ACDC_ROLLED
    for (int64_t from = begin; from < end; from += 32) {
      const double x = next;
      next = weight(from + 32 + lane);
      ACDC_UNROLLED
      for (int l = 0; l < 32; ++l) sum = __dadd_rn(sum, __shfl_sync(kAllLanes, x, l));
    }
  }
  return s.key(sum);
}

}  // namespace
}  // namespace acdc
