// Memory that a thread keeps from call to call, so that products don't fault pages in anew each time; large ones are given back.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace acdc {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // At least `floats` floats, aligned to cache lines, of any content; whatever was got before is gone.
  float* get(int64_t floats) {
    const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    if (bytes > bytes_) {
      std::free(data_);
      data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
      bytes_ = data_ != nullptr ? bytes : 0;
      if (data_ == nullptr) throw std::bad_alloc();
    }
    return data_;
  }

  // Keeps no more than `bytes`.
  void trim(size_t bytes) {
    if (bytes_ > bytes) {
      std::free(data_);
      data_ = nullptr;
      bytes_ = 0;
    }
  }

 private:
  float* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace acdc
