// The 90 masks of a 4 x 4 tile with two kept in every row and column, in lexicographic order of their kept indices, as the pair of columns
// that each row keeps.
#pragma once
#include <cstdint>

namespace acdc {
namespace {

constexpr int kTileMasks = 90;
constexpr int kPairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};

struct TileMasks {
  uint8_t top[kTileMasks] = {}, third[kTileMasks] = {}, fourth[kTileMasks] = {};  // top: 6 * first + second
  uint16_t bits[kTileMasks] = {};  // bit 4 * r + c for row r and column c
};

constexpr TileMasks tile_masks() {
  TileMasks masks;
  int found = 0;
  for (int i = 0; i < 6 * 6 * 6 * 6; ++i) {
    const int pair[4] = {i / 216, i / 36 % 6, i / 6 % 6, i % 6};
    int in_column[4] = {}, bits = 0;
    for (int r = 0; r < 4; ++r)
      for (int side = 0; side < 2; ++side) {
        ++in_column[kPairs[pair[r]][side]];
        bits |= 1 << (4 * r + kPairs[pair[r]][side]);
      }
    if (in_column[0] != 2 || in_column[1] != 2 || in_column[2] != 2 || in_column[3] != 2) continue;
    masks.top[found] = static_cast<uint8_t>(6 * pair[0] + pair[1]);
    masks.third[found] = static_cast<uint8_t>(pair[2]);
    masks.fourth[found] = static_cast<uint8_t>(pair[3]);
    masks.bits[found++] = static_cast<uint16_t>(bits);
  }
  return masks;
}
constexpr TileMasks kMasks = tile_masks();
static_assert(kMasks.bits[0] == 0xcc33 && kMasks.bits[kTileMasks - 1] == 0x33cc, "all 90 were found");

}  // namespace
}  // namespace acdc
