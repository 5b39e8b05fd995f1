// How the kernels of the structured patterns see weights. For .cu files of this room; everything sits in an anonymous namespace.
#pragma once
#include <vector>

#include "common/upload.h"
#include "topk/key_rule.h"
#include "topk/patterns_cuda.h"
#include "topk/selection_pieces.h"

namespace acdc {
namespace {

// Where a weight's elements lie.
struct Strides {
  int64_t inputs, kernel;
  int64_t output, input, place;  // strides
  int32_t layout;                // the kernel positions' number among the layouts, or -1: they are `place` apart
  int32_t plain;                 // contiguous, on a multiple of 16 bytes
};

struct PatternEntry {
  uint8_t* bits;
  int64_t numel, first_chunk;
  int64_t* nan_count;
  const void* data;
  Strides at;
};

struct PatternTable {
  const PatternEntry* table;
  int64_t entries;
  const Layout* layouts;
};

__device__ inline int64_t place_of(const Strides& s, const Layout* layouts, int64_t k) {
  return s.layout < 0 ? k * s.place : offset_of(layouts[s.layout], k);
}

// The magnitude of an element's bits; `bf16` tells the two types of 16 bits apart.
template <class U>
__device__ inline double magnitude_of(U u, bool bf16) {
  u = static_cast<U>(u & kMagnitude<U>);
  if constexpr (sizeof(U) == 8) {
    return __longlong_as_double(static_cast<long long>(u));
  } else if constexpr (sizeof(U) == 4) {
    return static_cast<double>(__uint_as_float(u));
  } else {
    const uint32_t wide = static_cast<uint32_t>(u);
    if (bf16) return static_cast<double>(__uint_as_float(wide << 16));
    if (wide >= 0x7c00) return static_cast<double>(__uint_as_float(wide << 13 | 0x7f800000u));
    return static_cast<double>(__fmul_rn(__uint_as_float(wide << 13), 0x1p112f));  // exact, for denormals too
  }
}

__global__ void clear_counts(int64_t* counts, int64_t n) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) counts[i] = 0;
}

inline cudaError_t clear_nan_counts(const PatternCudaProblem& p, cudaStream_t stream) {
  return ACDC_LAUNCH(clear_counts, 1, kSelectThreads, stream, p.nan_count, p.tensors);
}

// The weights that have elements, and the layouts of their kernel positions.
struct HostTables {
  std::vector<PatternEntry> entries;
  std::vector<Layout> layouts;
  int64_t entry_bytes() const { return (static_cast<int64_t>(entries.size() * sizeof(PatternEntry)) + 15) / 16 * 16; }
  int64_t bytes() const { return entry_bytes() + static_cast<int64_t>(layouts.size() * sizeof(Layout)); }
};

// first_chunk counts tiles of elements.
inline HostTables tables_of(const PatternCudaProblem& p) {
  HostTables t;
  int64_t tiles = 0;
  for (int64_t i = 0; i < p.tensors; ++i) {
    const PatternWeight& w = p.weights[i];
    if (w.numel == 0) continue;
    Strides at{w.inputs, w.kernel, w.output_stride, w.input_stride, 1, -1, w.contiguous && is_aligned16(w.data)};
    if (w.places.dims == 1) at.place = w.places.strides[0];
    if (w.places.dims > 1) {
      at.layout = static_cast<int32_t>(t.layouts.size());
      t.layouts.push_back(w.places);
    }
    t.entries.push_back({w.bits, w.numel, tiles, p.nan_count + i, w.data, at});
    tiles += tiles_of(w.numel);
  }
  return t;
}

inline cudaError_t send(const HostTables& t, void* memory, PatternTable* sent, cudaStream_t stream) {
  char* layouts = static_cast<char*>(memory) + t.entry_bytes();
  *sent = {static_cast<const PatternEntry*>(memory), static_cast<int64_t>(t.entries.size()), reinterpret_cast<const Layout*>(layouts)};
  const cudaError_t error = upload(t.entries.data(), sent->entries, memory, stream);
  return error == cudaSuccess ? upload(t.layouts.data(), static_cast<int64_t>(t.layouts.size()), layouts, stream) : error;
}

}  // namespace
}  // namespace acdc
