// The machine's limits: loops with the traffic of the real kernels and next to no arithmetic, for `acdc-kernels bench`.
//
// They split work as the real kernels do (chunks taken as threads become free), so the ratio of a kernel's time to these is what its
// arithmetic and bookkeeping cost. Memory must be contiguous; pointers need no alignment.
#pragma once
#include <cstdint>

#include "common/parallel.h"

namespace acdc {

// The largest byte of all tensors' memory; 0 if there is none. Reads every byte once, writes nothing.
uint8_t roofline_read_cpu(const void* const* data, const int64_t* bytes, int tensors, const Pool& pool);

// buffer = mask ? buffer + grad : +0; param = mask ? param - buffer : +0. Three reads, two writes, one mask bit an element.
struct RooflineUpdate {
  float* const* params;    // [tensors]
  const float* const* grads;
  float* const* buffers;
  const uint8_t* const* masks;  // (numel + 7) / 8 bytes each; nullptr: nothing is masked, no bits are read
  const int64_t* numel;
  int tensors;
};
void roofline_update_cpu(const RooflineUpdate& update, const Pool& pool);

}  // namespace acdc
