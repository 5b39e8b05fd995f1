// Denormals as IEEE 754 has them, whatever torch.set_flush_denormal said to a thread: it says so to one thread only.
#pragma once
#include <cstdint>

namespace acdc {

// How a thread computes with floats: what set_flush_denormal changes, and the rest of its control word.
class FloatMode {
 public:
#if defined(__x86_64__)
  using Word = uint32_t;
  static constexpr Word kFlush = 0x8040;  // FTZ and DAZ
  static FloatMode here() {
    FloatMode mode;
    asm volatile("stmxcsr %0" : "=m"(mode.word_)::"memory");
    return mode;
  }
  void set() const { asm volatile("ldmxcsr %0" ::"m"(word_) : "memory"); }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kFlush = Word{1} << 24;  // FZ
  static FloatMode here() {
    FloatMode mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode.word_)::"memory");
    return mode;
  }
  void set() const { asm volatile("msr fpcr, %0" ::"r"(word_) : "memory"); }
#else
  using Word = uint32_t;
  static constexpr Word kFlush = 0;  // elsewhere torch can't flush them
  static FloatMode here() { return {}; }
  void set() const {}
#endif
  bool flushes() const { return (word_ & kFlush) != 0; }
  FloatMode ieee() const {
    FloatMode mode = *this;
    mode.word_ &= ~kFlush;
    return mode;
  }
  bool operator==(const FloatMode& other) const { return word_ == other.word_; }

 private:
  Word word_ = 0;
};

// While it lives, this thread computes in `mode`; nothing is written where it does so anyway. The asm clobbers memory, so that what is
// loaded and stored within stays within.
class ScopedFloatMode {
 public:
  explicit ScopedFloatMode(const FloatMode& mode) : before_(FloatMode::here()), changed_(!(before_ == mode)) {
    if (changed_) mode.set();
  }
  ~ScopedFloatMode() {
    if (changed_) before_.set();
  }
  ScopedFloatMode(const ScopedFloatMode&) = delete;
  ScopedFloatMode& operator=(const ScopedFloatMode&) = delete;

 private:
  FloatMode before_;
  bool changed_;
};

// While it lives, this thread neither reads denormals as zero nor flushes results to zero.
class IeeeDenormals : ScopedFloatMode {
 public:
  IeeeDenormals() : ScopedFloatMode(FloatMode::here().ieee()) {}
};

}  // namespace acdc
