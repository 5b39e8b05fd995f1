#include <algorithm>
#include <cstring>

#include "topk/pattern_pieces.h"

namespace acdc {
namespace {

constexpr int64_t kTiles = 128;  // scored at a time: their magnitudes as double take 16 KiB

// Sets the bits of one tile: the bit of its first weight is `at`, of the next in the row at + kernel, of the next row at + row.
void set_tile(uint8_t* bits, int64_t at, int64_t kernel, int64_t row, uint32_t mask) {
  if (kernel == 1) {  // a row of a tile is half a byte, for at and row are multiples of 4
    for (int r = 0; r < 4; ++r, at += row, mask >>= 4)
      bits[at >> 3] = static_cast<uint8_t>(bits[at >> 3] | (mask & 15) << (at & 4));
    return;
  }
  for (; mask; mask &= mask - 1) {
    const int in_tile = __builtin_ctz(mask);
    const int64_t i = at + in_tile / 4 * row + in_tile % 4 * kernel;
    bits[i >> 3] = static_cast<uint8_t>(bits[i >> 3] | 1u << (i & 7));
  }
}

template <class U>
class Bands {
 public:
  Bands(const TensorRef& t, DType dtype) : t_(t), axes_(t), kernels_(pattern_kernels()), dtype_(static_cast<int>(dtype)) {}

  // Four rows from weight `begin` on; `bits` starts at begin's. How many are NaN.
  int64_t band(int64_t begin, uint8_t* bits) {
    const int64_t row = axes_.inputs * axes_.kernel, across = axes_.inputs / 4;
    const int64_t width = std::min(axes_.kernel, kTiles), columns = kTiles / width;  // kernel positions and tile columns at a time
    int64_t nans = 0;
    for (int64_t column = 0; column < across; column += columns)
      for (int64_t place = 0; place < axes_.kernel; place += width) {
        const int64_t c = std::min(columns, across - column), k = std::min(width, axes_.kernel - place);
        const int64_t at = 4 * column * axes_.kernel + place;
        for (int r = 0; r < 4; ++r) nans += read_row(begin + r * row + at, c, k, x_ + 4 * r * kTiles);
        kernels_.best_tiles(x_, kTiles, c * k, masks_);
        for (int64_t i = 0; i < c; ++i)
          for (int64_t j = 0; j < k; ++j) set_tile(bits, at + 4 * i * axes_.kernel + j, axes_.kernel, row, masks_[i * k + j]);
      }
    return nans;
  }

 private:
  // Magnitudes of one row of `columns` tiles at `k` kernel positions each: out[c * kTiles + tile]. How many are NaN.
  int64_t read_row(int64_t begin, int64_t columns, int64_t k, double* out) {
    const int64_t kernel = axes_.kernel, n = 4 * columns * k;
    int64_t nans = 0;
    for (int64_t from = 0, step = k == kernel ? n : k; from < n; from += step) {  // one stretch, or a part of each kernel
      const int64_t at = begin + from / k * kernel;
      const U* p = static_cast<const U*>(t_.data) + at;
      if (!t_.contiguous) {
        gather(t_, at, step, gathered_);
        p = gathered_;
      }
      nans += kernels_.magnitudes[dtype_](p, step, wide_ + from);
    }
    for (int64_t i = 0; i < columns; ++i)
      for (int c = 0; c < 4; ++c)
        for (int64_t j = 0; j < k; ++j) out[c * kTiles + i * k + j] = wide_[(4 * i + c) * k + j];
    return nans;
  }

  const TensorRef& t_;
  Axes axes_;
  const PatternKernels& kernels_;
  int dtype_;
  double x_[16 * kTiles] = {}, wide_[4 * kTiles];
  U gathered_[4 * kTiles];
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
    Bands<U> bands(problem.weights[piece.tensor], problem.dtype);
    int64_t nans = 0;
    const int64_t band = band_of(piece.tensor);
    for (int64_t at = 0; at < piece.count; at += band) nans += bands.band(piece.begin + at, bits + at / 8);
    if (nans) __atomic_fetch_add(&problem.nan_count[piece.tensor], nans, __ATOMIC_RELAXED);
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
