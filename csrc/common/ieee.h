// Denormals as IEEE 754 has them, whatever torch.set_flush_denormal said to a thread: it says so to one thread only.
#pragma once
#include <cstdint>

namespace acdc {

// While it lives, this thread neither reads denormals as zero nor flushes results to zero. Nothing is written where that is so anyway.
// The asm clobbers memory, so that what is loaded and stored within stays within.
class IeeeDenormals {
 public:
  IeeeDenormals() {
    read(&before_);
    if (before_ & kFlush) write(before_ & ~kFlush);
  }
  ~IeeeDenormals() {
    if (before_ & kFlush) write(before_);
  }
  IeeeDenormals(const IeeeDenormals&) = delete;
  IeeeDenormals& operator=(const IeeeDenormals&) = delete;

 private:
#if defined(__x86_64__)
  using Word = uint32_t;
  static constexpr Word kFlush = 0x8040;  // FTZ and DAZ
  static void read(Word* word) { asm volatile("stmxcsr %0" : "=m"(*word)::"memory"); }
  static void write(Word word) { asm volatile("ldmxcsr %0" ::"m"(word) : "memory"); }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kFlush = Word{1} << 24;  // FZ
  static void read(Word* word) { asm volatile("mrs %0, fpcr" : "=r"(*word)::"memory"); }
  static void write(Word word) { asm volatile("msr fpcr, %0" ::"r"(word) : "memory"); }
#else
  using Word = uint32_t;
  static constexpr Word kFlush = 0;  // elsewhere torch can't flush them
  static void read(Word* word) { *word = 0; }
  static void write(Word) {}
#endif
  Word before_;
};

}  // namespace acdc
