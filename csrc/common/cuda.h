// One source for nvcc and for the emulator that tests run kernels in. Kernels take values and raw pointers; what a block shares is
// declared with ACDC_SHARED; a block has block_threads(n) threads, a multiple of 32. A host function returns cudaSuccess or what failed.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef ACDC_CUDA_EMULATED
#include "tests/emulator/cuda_emulator.h"
// Before a loop: unrolled whole, so that arrays stay in registers; or not at all.
#define ACDC_UNROLLED
#define ACDC_ROLLED
#else
#include <cuda_runtime.h>

// kernel(args...) on `grid` blocks of `block` threads; what the launch returned.
#define ACDC_LAUNCH(kernel, grid, block, stream, ...) (kernel<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__), cudaGetLastError())
// A variable of a trivial type that the threads of a block share; its value is undefined at first.
#define ACDC_SHARED(Type, name) __shared__ Type name
// The type of a large parameter of a kernel, which is read in place, from constant memory.
#define ACDC_CONSTANT(...) const __grid_constant__ __VA_ARGS__
#ifdef __CUDA_ARCH__
#define ACDC_UNROLLED _Pragma("unroll")
#define ACDC_ROLLED _Pragma("unroll 1")
#else  // the host's compiler knows no such pragma
#define ACDC_UNROLLED
#define ACDC_ROLLED
#endif

namespace acdc {

constexpr unsigned block_threads(unsigned n) { return n; }

// Of the current device.
inline int multiprocessors() {
  constexpr int kDevices = 64;
  static int known[kDevices] = {};  // racing threads write the same number
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return 1;
  if (known[device] == 0) {
    int count = 1;
    if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
    known[device] = count;
  }
  return known[device];
}

}  // namespace acdc
#endif

namespace acdc {

constexpr unsigned kAllLanes = 0xffffffffu;

// Enough blocks for `items` pieces of work, and no more than `per_multiprocessor` on each: kernels loop over the rest.
inline unsigned grid_for(int64_t items, int per_multiprocessor) {
  const int64_t most = static_cast<int64_t>(multiprocessors()) * per_multiprocessor;
  const int64_t blocks = items < most ? items : most;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks);
}

// Sixteen bytes, moved by one instruction.
struct alignas(16) Bytes16 {
  uint32_t word[4];
};

__host__ __device__ inline bool is_aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

#if defined(__CUDACC__) || defined(ACDC_CUDA_EMULATED)  // bindings include this file too

// Sixteen bytes of global memory that nobody writes while the kernel runs.
__device__ inline Bytes16 load16(const Bytes16* p) {
#ifdef __CUDACC__
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(p));
  return {{v.x, v.y, v.z, v.w}};
#else
  return *p;
#endif
}

// Sets `bits` in the aligned word of a mask that holds bit `at`; others may set bits of the same word. Masks start on a multiple of 4
// bytes, and their memory is a multiple of 4 bytes long, as device allocations are.
__device__ inline void set_bits(uint8_t* mask, int64_t at, uint32_t bits) {
  uint32_t* word = reinterpret_cast<uint32_t*>(mask) + (at >> 5);
  const int shift = static_cast<int>(at & 31);
  if (bits << shift) atomicOr(word, bits << shift);
  if (shift && bits >> (32 - shift)) atomicOr(word + 1, bits >> (32 - shift));
}

#endif

}  // namespace acdc
