// From one bit a block to one bit a weight.
#pragma once
#include <cstdint>

#include "topk/pattern_pieces.h"

namespace acdc {

// In: a bit for each block of the weight, in the order of the blocks' first weights, from the front of `bits`. Out: a bit for each
// weight, unused bits of the last byte 0. In place, from the end: a block's bit never lies behind the bits of its weights.
void spread_block_bits(const Axes& axes, BlockShape block, uint8_t* bits);

}  // namespace acdc
