#include "common/table.h"
#include "common/upload.h"
#include "mask_bits/mask_bits_cuda.h"

namespace acdc {
namespace {

constexpr unsigned kThreads = block_threads(256);

// A warp packs 32 elements into a word; a mask's last bytes go one by one, for the memory behind them may be someone else's.
__global__ void pack(const uint8_t* mask, ACDC_CONSTANT(Layout) layout, uint8_t* bits) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, n = layout.numel;
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + (threadIdx.x & ~31u); first < n; first += step) {
    const int64_t i = first + lane;
    const uint32_t word = __ballot_sync(kAllLanes, i < n && mask[offset_of(layout, i)] != 0);
    if (n - first >= 32) {
      if (lane == 0) reinterpret_cast<uint32_t*>(bits)[first / 32] = word;
    } else if (8 * lane < n - first) {
      bits[first / 8 + lane] = static_cast<uint8_t>(word >> (8 * lane));
    }
  }
}

// A thread unpacks a byte of bits into 8 bytes, with one store where there are 8.
__global__ void unpack(const uint8_t* bits, uint8_t* mask, int64_t numel) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, bytes = (numel + 7) / 8;
  const bool aligned = (reinterpret_cast<uintptr_t>(mask) & 7) == 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < bytes; i += step) {
    const uint64_t b = bits[i];
    if (aligned && numel - 8 * i >= 8) {
      uint64_t spread = 0;
      for (int j = 0; j < 8; ++j) spread |= (b >> j & 1) << (8 * j);
      reinterpret_cast<uint64_t*>(mask)[i] = spread;
    } else {
      for (int64_t j = 0; j < 8 && 8 * i + j < numel; ++j) mask[8 * i + j] = static_cast<uint8_t>(b >> j & 1);
    }
  }
}

template <class U>
__device__ void apply_chunk(const MaskedLayout& t, int64_t begin, int64_t end) {
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x)
    if (!(t.bits[i >> 3] >> (i & 7) & 1)) static_cast<U*>(t.data)[offset_of(t.layout, i)] = 0;
}

__global__ void apply(const MaskedLayout* table, int64_t tensors, int64_t chunks) {
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const MaskedLayout& t = table[find_entry(table, tensors, chunk)];
    const int64_t begin = (chunk - t.first_chunk) * kApplyChunk;
    const int64_t end = begin + kApplyChunk < t.layout.numel ? begin + kApplyChunk : t.layout.numel;
    if (t.element_bytes == 8)
      apply_chunk<uint64_t>(t, begin, end);
    else if (t.element_bytes == 4)
      apply_chunk<uint32_t>(t, begin, end);
    else
      apply_chunk<uint16_t>(t, begin, end);
  }
}

}  // namespace

cudaError_t pack_mask_cuda(const uint8_t* mask, const Layout& layout, uint8_t* bits, cudaStream_t stream) {
  if (layout.numel == 0) return cudaSuccess;
  return ACDC_LAUNCH(pack, grid_for((layout.numel + kThreads - 1) / kThreads, 16), kThreads, stream, mask, layout, bits);
}

cudaError_t unpack_mask_cuda(const uint8_t* bits, uint8_t* mask, int64_t numel, cudaStream_t stream) {
  if (numel == 0) return cudaSuccess;
  return ACDC_LAUNCH(unpack, grid_for((numel / 8 + kThreads) / kThreads, 16), kThreads, stream, bits, mask, numel);
}

cudaError_t apply_mask_cuda(const MaskedLayout* tensors, int64_t count, void* table, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const cudaError_t error = upload(tensors, count, table, stream);
  if (error != cudaSuccess) return error;
  const int64_t chunks = tensors[count - 1].first_chunk + (tensors[count - 1].layout.numel + kApplyChunk - 1) / kApplyChunk;
  return ACDC_LAUNCH(apply, grid_for(chunks, 8), kThreads, stream, static_cast<const MaskedLayout*>(table), count, chunks);
}

}  // namespace acdc
