// Tables from host to device memory within kernel arguments: nothing waits, no host memory must outlive the call, and a CUDA graph that
// captures it keeps the table's values.
#pragma once
#include <type_traits>

#include "common/cuda.h"

namespace acdc {

template <int kWords>
struct UploadPiece {
  uint32_t words[kWords];
};

template <int kWords>
__global__ void upload_piece(ACDC_CONSTANT(UploadPiece<kWords>) piece, uint32_t* to, int words) {
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < words; i += static_cast<int>(gridDim.x * blockDim.x)) to[i] = piece.words[i];
}

// `to` is device memory for `count` entries, aligned to 8 bytes.
template <class Entry>
cudaError_t upload(const Entry* entries, int64_t count, void* to, cudaStream_t stream) {
  static_assert(std::is_trivially_copyable_v<Entry> && sizeof(Entry) % 4 == 0, "entries are copied as words");
  constexpr int kSmall = 960, kLarge = 8000;  // arguments of a kernel: at most 32764 bytes
  const char* from = reinterpret_cast<const char*>(entries);
  uint32_t* out = static_cast<uint32_t*>(to);
  auto send = [&](auto piece, int words) {
    std::memcpy(piece.words, from, static_cast<size_t>(words) * 4);
    auto kernel = upload_piece<sizeof(piece) / 4>;
    const unsigned threads = block_threads(256);
    const cudaError_t error = ACDC_LAUNCH(kernel, grid_for((words + threads - 1) / threads, 1), threads, stream, piece, out, words);
    from += static_cast<size_t>(words) * 4;
    out += words;
    return error;
  };
  for (int64_t left = count * static_cast<int64_t>(sizeof(Entry) / 4); left > 0;) {
    const int words = static_cast<int>(left < kLarge ? left : kLarge);
    const cudaError_t error = words <= kSmall ? send(UploadPiece<kSmall>{}, words) : send(UploadPiece<kLarge>{}, words);
    if (error != cudaSuccess) return error;
    left -= words;
  }
  return cudaSuccess;
}

}  // namespace acdc
