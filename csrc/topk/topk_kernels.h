// The inner loops of topk_mask, one table an ISA level. U is the unsigned integer as wide as the element.
#pragma once
#include <cstdint>

namespace acdc {

// key(u) = min(u & magnitude, nan): bit patterns of magnitudes, ordered as the magnitudes are.
template <class U>
struct KeyRule {
  U magnitude;  // all bits but the sign
  U nan;        // Inf's pattern + 1
};

template <class U>
struct TopkLoops {
  // Bits of keys > high; keys in [low, high] are appended to keys/index (index counts from `first`).
  // Returns the number appended, or -1 if `room` might not do: a whole vector is written at a time. *greater and *largest are
  // accumulated.
  int64_t (*scan)(const U* p, int64_t n, KeyRule<U> rule, U low, U high, uint8_t* bits, uint32_t first, U* keys, uint16_t* index,
                  int64_t room, int64_t* greater, U* largest);
  // Bits of keys > threshold; counts keys == threshold; accumulates the largest key.
  void (*write_greater)(const U* p, int64_t n, KeyRule<U> rule, U threshold, uint8_t* bits, int64_t* equal, U* largest);
  // ++histogram[(key - base) >> shift] for keys with key - base < 2^width.
  void (*histogram)(const U* p, int64_t n, KeyRule<U> rule, U base, int width, int shift, uint32_t* histogram);
  // Sets the bits of the first `take` keys == threshold.
  void (*take_equal)(const U* p, int64_t n, KeyRule<U> rule, U threshold, int64_t take, uint8_t* bits);
  // How many keys are >= threshold.
  int64_t (*count_from)(const U* p, int64_t n, KeyRule<U> rule, U threshold);
};

struct TopkKernels {
  TopkLoops<uint16_t> u16;
  TopkLoops<uint32_t> u32;
  TopkLoops<uint64_t> u64;
};

constexpr int64_t kScanSlack = 32;  // entries that one round of `scan` may write

const TopkKernels& topk_kernels();
const TopkKernels& topk_kernels_generic();
const TopkKernels& topk_kernels_avx2();
const TopkKernels& topk_kernels_avx512();

}  // namespace acdc
