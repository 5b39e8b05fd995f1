// Runs CUDA kernels on the CPU, for tests: a fiber for each thread, blocks one after another, threads and blocks in the order that
// ACDC_EMULATOR_ORDER chooses: 0 ascending, 1 descending, any other odd number seeds a shuffle that is drawn anew whenever threads have
// met, any other even number besides lets one warp after another run as far as the next barrier of the block. A thread runs until it meets
// others, so what a missing barrier lets through depends on the order. Shared memory is poisoned before each block.
// Kernels that wait for another block never end here. Errors: threads of a block that wait at different barriers, lanes that meet in
// different operations or under different masks, a shuffle from a lane that isn't in the mask, grids and arguments that no GPU takes.
// Not seen here, for threads run one at a time and blocks one after another: a plain change where an atomic one is needed, a missing
// fence, caches. Global memory out of bounds is seen where tests put guards around it.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define ACDC_CONSTANT(...) const __VA_ARGS__&

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };

namespace acdc::emulator {

extern dim3 thread_index, block_index, block_size, grid_size;

// Runs `body` as every thread of every block; the kernel's arguments take `argument_bytes`.
void run(dim3 grid, dim3 block, size_t argument_bytes, const std::function<void()>& body);
// Block-shared memory, the same for all threads that name the same place of the source.
void* shared(const char* file, int line, size_t bytes);
void meet_block();
enum class Meeting : uint8_t { barrier, shuffle, vote, match, sum, join };
// Meets the lanes of `mask`, and returns what each of them brought.
const uint64_t* meet_warp(Meeting kind, unsigned mask, uint64_t value);
// What lane `from` of `mask` brings; `from` counts within groups of `width` lanes.
uint64_t shuffle(unsigned mask, uint64_t value, unsigned from, unsigned width);
unsigned lane();

template <class... Args>
constexpr size_t bytes_of(const Args&...) {
  return (size_t{0} + ... + sizeof(Args));
}
template <class T>
uint64_t to_bits(T v) {
  static_assert(sizeof(T) <= 8, "at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T v;
  std::memcpy(&v, &bits, sizeof(T));
  return v;
}

}  // namespace acdc::emulator

#define threadIdx (acdc::emulator::thread_index)
#define blockIdx (acdc::emulator::block_index)
#define blockDim (acdc::emulator::block_size)
#define gridDim (acdc::emulator::grid_size)
#define ACDC_LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), acdc::emulator::run((grid), (block), acdc::emulator::bytes_of(__VA_ARGS__), [&] { kernel(__VA_ARGS__); }), cudaSuccess)
#define ACDC_SHARED(Type, name) auto& name = *static_cast<Type*>(acdc::emulator::shared(__FILE__, __LINE__, sizeof(Type)))

#ifndef ACDC_EMULATED_THREADS
#define ACDC_EMULATED_THREADS 64
#endif

namespace acdc {
constexpr unsigned block_threads(unsigned n) { return n < ACDC_EMULATED_THREADS ? n : ACDC_EMULATED_THREADS; }
inline int multiprocessors() { return 2; }
}  // namespace acdc

inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid value"; }

inline void __syncthreads() { acdc::emulator::meet_block(); }
inline void __syncwarp(unsigned mask = ~0u) { acdc::emulator::meet_warp(acdc::emulator::Meeting::barrier, mask, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
  return acdc::emulator::from_bits<T>(acdc::emulator::shuffle(mask, acdc::emulator::to_bits(v), static_cast<unsigned>(from), static_cast<unsigned>(width)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32) {
  return __shfl_sync(mask, v, static_cast<int>(acdc::emulator::lane()) ^ lanes, width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const unsigned l = acdc::emulator::lane(), in = l & (static_cast<unsigned>(width) - 1);
  return __shfl_sync(mask, v, static_cast<int>(in + by < static_cast<unsigned>(width) ? in + by : in), width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const unsigned l = acdc::emulator::lane(), in = l & (static_cast<unsigned>(width) - 1);
  return __shfl_sync(mask, v, static_cast<int>(in >= by ? in - by : in), width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* v = acdc::emulator::meet_warp(acdc::emulator::Meeting::vote, mask, predicate != 0);
  unsigned bits = 0;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) bits |= static_cast<unsigned>(v[l]) << l;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t mine = acdc::emulator::to_bits(value);
  const uint64_t* v = acdc::emulator::meet_warp(acdc::emulator::Meeting::match, mask, mine);
  unsigned bits = 0;
  for (unsigned l = 0; l < 32; ++l) bits |= static_cast<unsigned>((mask >> l & 1) && v[l] == mine) << l;
  return bits;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  const uint64_t* v = acdc::emulator::meet_warp(acdc::emulator::Meeting::sum, mask, value);
  unsigned sum = 0;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) sum += static_cast<unsigned>(v[l]);
  return sum;
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  const uint64_t* v = acdc::emulator::meet_warp(acdc::emulator::Meeting::join, mask, value);
  unsigned bits = 0;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) bits |= static_cast<unsigned>(v[l]);
  return bits;
}

// Threads run one at a time, so a plain change is atomic.
template <class T>
T atomicAdd(T* p, T v) {
  const T before = *p;
  *p = static_cast<T>(before + v);
  return before;
}
template <class T>
T atomicMax(T* p, T v) {
  const T before = *p;
  if (v > before) *p = v;
  return before;
}
template <class T>
T atomicMin(T* p, T v) {
  const T before = *p;
  if (v < before) *p = v;
  return before;
}
template <class T>
T atomicOr(T* p, T v) {
  const T before = *p;
  *p = before | v;
  return before;
}
template <class T>
T atomicAnd(T* p, T v) {
  const T before = *p;
  *p = before & v;
  return before;
}
template <class T>
T atomicExch(T* p, T v) {
  const T before = *p;
  *p = v;
  return before;
}
template <class T>
T atomicCAS(T* p, T expected, T v) {
  const T before = *p;
  if (before == expected) *p = v;
  return before;
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64; }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
  return r;
}
inline float __uint_as_float(unsigned v) { return acdc::emulator::from_bits<float>(v); }
inline unsigned __float_as_uint(float v) { return static_cast<unsigned>(acdc::emulator::to_bits(v)); }
inline double __longlong_as_double(long long v) { return acdc::emulator::from_bits<double>(static_cast<uint64_t>(v)); }
inline long long __double_as_longlong(double v) { return static_cast<long long>(acdc::emulator::to_bits(v)); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
