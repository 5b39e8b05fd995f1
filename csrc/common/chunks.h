// Many tensors as one list of chunks, so that threads share the work evenly whatever the tensors' sizes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace acdc {

struct Chunk {
  int64_t begin;   // first element within its tensor; a multiple of 8, so that its mask bits start a byte
  int32_t count;
  int32_t tensor;
};

template <class Numel>
std::vector<Chunk> make_chunks(int tensors, const Numel& numel, int32_t chunk_elements) {
  std::vector<Chunk> chunks;
  std::size_t count = 0;
  for (int t = 0; t < tensors; ++t) count += static_cast<std::size_t>((numel(t) + chunk_elements - 1) / chunk_elements);
  chunks.reserve(count);
  for (int t = 0; t < tensors; ++t)
    for (int64_t begin = 0; begin < numel(t); begin += chunk_elements) {
      int64_t left = numel(t) - begin;
      chunks.push_back({begin, left < chunk_elements ? static_cast<int32_t>(left) : chunk_elements, t});
    }
  return chunks;
}

}  // namespace acdc
