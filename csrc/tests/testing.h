// What the C++ tests share: a pool of std::threads, a check that reports where it failed, pseudo-random numbers.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/strided.h"

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                  \
    }                                                                                \
  } while (0)

namespace acdc::testing {

// Ends the test as skipped if its first argument names an ISA level that this processor or build lacks.
inline void skip_unless_available(int argc, char** argv) {
  for (Isa isa : {Isa::generic, Isa::avx2, Isa::avx512})
    if (argc > 1 && std::strcmp(argv[1], isa_name(isa)) == 0 && !isa_available(isa)) std::exit(77);
}

inline void run_threads(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += grain)
    threads.emplace_back(body, first, first + grain < end ? first + grain : end, context);
  for (std::thread& t : threads) t.join();
}

inline Pool pool(int threads) { return {run_threads, threads}; }

struct Random {
  uint64_t state;
  uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double bell() {  // close to normal: enough for magnitudes that look like weights
    double sum = 0;
    for (int i = 0; i < 6; ++i) sum += unit();
    return (sum - 3) * 1.4;
  }
};

// Owns what a TensorRef points at.
struct Vector {
  int64_t size[1], stride[1] = {1};
  TensorRef ref;
  template <class T>
  explicit Vector(std::vector<T>& data) : size{static_cast<int64_t>(data.size())}, ref{data.data(), size[0], size, stride, 1, true} {}
  Vector(const Vector&) = delete;
};

}  // namespace acdc::testing
