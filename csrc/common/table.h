// Tables of tensors, each of which is cut into chunks that are numbered through.
#pragma once
#include "common/cuda.h"

namespace acdc {

// The entry whose chunks `chunk` is among: the last with first_chunk <= chunk. Every entry has at least one chunk.
template <class Entry>
__device__ inline int64_t find_entry(const Entry* table, int64_t entries, int64_t chunk) {
  int64_t low = 0, high = entries;  // table[low].first_chunk <= chunk < table[high].first_chunk
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (table[middle].first_chunk <= chunk)
      low = middle;
    else
      high = middle;
  }
  return low;
}

}  // namespace acdc
