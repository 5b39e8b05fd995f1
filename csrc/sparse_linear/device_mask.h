// Reading a mask in device memory 32 bits at a time, from any bit on. Words that hold a byte of it are read whole.
#pragma once
#include "common/cuda.h"

namespace acdc {

class DeviceMask {
 public:
  DeviceMask(const uint8_t* bits, int64_t elements) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(bits);
    words_ = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
    skew_ = static_cast<int64_t>(8 * (address & 3));
    last_ = (skew_ + elements - 1) >> 5;
  }

#if defined(__CUDACC__) || defined(ACDC_CUDA_EMULATED)
  // Bits [begin, begin + 32); those from `end` on, which is at most the number of elements, are 0.
  __device__ uint32_t at(int64_t begin, int64_t end) const {
    if (begin >= end) return 0;
    const int64_t word = (begin + skew_) >> 5;
    const int shift = static_cast<int>((begin + skew_) & 31);
    uint32_t bits = words_[word] >> shift;
    if (shift && word < last_) bits |= words_[word + 1] << (32 - shift);
    return end - begin < 32 ? bits & ((1u << (end - begin)) - 1) : bits;
  }

  // Word i holds bits 32 * i to 32 * i + 31; null where the mask doesn't start on a multiple of 4 bytes.
  __device__ const uint32_t* words() const { return skew_ == 0 ? words_ : nullptr; }
#endif

 private:
  const uint32_t* words_;
  int64_t skew_, last_;  // bits before the first one; the last word
};

}  // namespace acdc
