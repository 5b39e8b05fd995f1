#include <algorithm>
#include <cstring>

#include "common/ieee.h"
#include "topk/pattern_pieces.h"

namespace acdc {
namespace {

// Sets the bits of `n` tiles at consecutive kernel positions: row r and column c of the first lie at bit at + r * row + c * kernel.
void set_kernels(uint8_t* bits, int64_t at, int64_t kernel, int64_t row, const uint16_t* masks, int64_t n) {
  for (int in_tile = 0; in_tile < 16; ++in_tile) {
    const int64_t first = at + in_tile / 4 * row + in_tile % 4 * kernel;
    for (int64_t j = 0; j < n; j += 32) {
      const int64_t now = std::min<int64_t>(32, n - j), begin = first + j;
      uint64_t word = 0;
      for (int64_t i = 0; i < now; ++i) word |= static_cast<uint64_t>(masks[j + i] >> in_tile & 1) << i;
      word <<= begin & 7;
      for (uint8_t* byte = bits + (begin >> 3); word; ++byte, word >>= 8) *byte = static_cast<uint8_t>(*byte | word);
    }
  }
}

// The same of tiles at consecutive columns, with one kernel position: a row of a tile is half a byte, for at and row are multiples of 4.
void set_columns(uint8_t* bits, int64_t at, int64_t row, const uint16_t* masks, int64_t n) {
  for (int r = 0; r < 4; ++r, at += row) {
    auto half = [&](int64_t i) { return masks[i] >> (4 * r) & 15; };
    uint8_t* byte = bits + (at >> 3);
    int64_t i = 0;
    if (at & 4) {
      *byte = static_cast<uint8_t>(*byte | half(i++) << 4);
      ++byte;
    }
    for (; i + 2 <= n; i += 2) *byte++ = static_cast<uint8_t>(half(i) | half(i + 1) << 4);
    if (i < n) *byte = static_cast<uint8_t>(*byte | half(i));
  }
}

template <class U>
class Bands {
 public:
  Bands(const TensorRef& t, DType dtype)
      : t_(t), axes_(t), kernels_(pattern_kernels()), magnitudes_(kernels_.magnitudes[static_cast<int>(dtype)]) {}

  // Four rows from weight `begin` on; `bits` starts at begin's. Whether there may be a NaN.
  bool band(int64_t begin, uint8_t* bits) {
    const int64_t kernel = axes_.kernel, row = axes_.inputs * kernel, across = axes_.inputs / 4;
    const int64_t width = std::min(kernel, kTiles), columns = kTiles / width;  // kernel positions and tile columns at a time
    bool nan = false;
    for (int64_t column = 0; column < across; column += columns)
      for (int64_t place = 0; place < kernel; place += width) {
        const int64_t c = std::min(columns, across - column), k = std::min(width, kernel - place);
        const int64_t at = 4 * column * kernel + place;
        for (int r = 0; r < 4; ++r) read_row(begin + r * row + at, c, k, x_ + r * kTileRow);
        nan |= kernels_.best_tiles(x_, kernel == 1 ? 1 : kTiles, kernel == 1 ? 4 : 1, c * k, masks_);
        if (kernel == 1)
          set_columns(bits, at, row, masks_, c);
        else
          for (int64_t i = 0; i < c; ++i) set_kernels(bits, at + 4 * i * kernel, kernel, row, masks_ + i * k, k);
      }
    return nan;
  }

 private:
  // Magnitudes of one row of `columns` tiles at `k` kernel positions each; with one kernel position just as they lie in the weight,
  // else column c of tile t at out[c * kTiles + t].
  void read_row(int64_t begin, int64_t columns, int64_t k, double* out) {
    const int64_t kernel = axes_.kernel;
    const U* p = static_cast<const U*>(t_.data) + begin;
    if (kernel == k && !t_.contiguous) {
      gather(t_, begin, 4 * columns * k, gathered_);
      p = gathered_;
    }
    if (kernel == 1) return magnitudes_(p, 4 * columns, out);
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t c = 0; c < 4; ++c) {
        const int64_t at = (4 * i + c) * kernel;
        if (kernel != k && !t_.contiguous) gather(t_, begin + at, k, gathered_);
        magnitudes_(kernel != k && !t_.contiguous ? gathered_ : p + at, k, out + c * kTiles + i * k);
      }
  }

  const TensorRef& t_;
  Axes axes_;
  const PatternKernels& kernels_;
  void (*magnitudes_)(const void*, int64_t, double*);
  double x_[4 * kTileRow] = {};
  U gathered_[kTileRow];
  uint16_t masks_[kTiles];
};

template <class U>
void transposable(const PatternProblem& problem, const Pool& all) {
  auto band_of = [&](int t) { return 4 * Axes(problem.weights[t]).inputs * Axes(problem.weights[t]).kernel; };
  const std::vector<Piece> pieces = make_pieces(problem, band_of);
  const Pool pool = all.for_elements(total_numel(problem));
  std::fill_n(problem.nan_count, problem.tensors, int64_t{0});
  for_each_item(pool, static_cast<int64_t>(pieces.size()), [&](int, int64_t i) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    uint8_t* const bits = problem.bits[piece.tensor] + piece.begin / 8;
    std::memset(bits, 0, static_cast<size_t>((piece.count + 7) / 8));
    const IeeeDenormals denormals;
    Bands<U> bands(problem.weights[piece.tensor], problem.dtype);
    bool nan = false;
    const int64_t band = band_of(piece.tensor);
    for (int64_t at = 0; at < piece.count; at += band) nan |= bands.band(piece.begin + at, bits + at / 8);
    if (nan) count_nans<U>(problem, piece.tensor, piece.begin, piece.count);
  });
}

}  // namespace

void transposable_mask_cpu(const PatternProblem& problem, const Pool& pool) {
  switch (element_bytes(problem.dtype)) {
    case 8: return transposable<uint64_t>(problem, pool);
    case 4: return transposable<uint32_t>(problem, pool);
    default: return transposable<uint16_t>(problem, pool);
  }
}

}  // namespace acdc
