#include <atomic>

#include "common/chunks.h"
#include "common/isa.h"
#include "roofline/roofline.h"
#include "roofline/roofline_kernels.h"

namespace acdc {

ACDC_SELECT_ISA(RooflineKernels, roofline_kernels)

uint8_t roofline_read_cpu(const void* const* data, const int64_t* bytes, int tensors, const Pool& pool) {
  const auto chunks = make_chunks(tensors, [&](int t) { return bytes[t]; }, 1 << 20);
  const RooflineKernels& kernels = roofline_kernels();
  std::atomic<uint8_t> largest{0};
  for_each_item(pool, static_cast<int64_t>(chunks.size()), [&](int, int64_t i) {
    const Chunk& c = chunks[i];
    const uint8_t mine = kernels.largest_byte(static_cast<const uint8_t*>(data[c.tensor]) + c.begin, c.count);
    uint8_t seen = largest.load(std::memory_order_relaxed);
    while (mine > seen && !largest.compare_exchange_weak(seen, mine, std::memory_order_relaxed)) {
    }
  });
  return largest.load();
}

void roofline_update_cpu(const RooflineUpdate& u, const Pool& pool) {
  const auto chunks = make_chunks(u.tensors, [&](int t) { return u.numel[t]; }, 1 << 15);
  const RooflineKernels& kernels = roofline_kernels();
  const auto loop = u.masks ? kernels.masked_update : kernels.update;
  for_each_item(pool, static_cast<int64_t>(chunks.size()), [&](int, int64_t i) {
    const Chunk& c = chunks[i];
    const uint8_t* bits = u.masks ? u.masks[c.tensor] + c.begin / 8 : nullptr;
    loop(u.params[c.tensor] + c.begin, u.grads[c.tensor] + c.begin, u.buffers[c.tensor] + c.begin, bits, c.count);
  });
}

}  // namespace acdc
