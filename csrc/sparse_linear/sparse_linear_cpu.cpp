#include "sparse_linear/sparse_linear.h"

#include <algorithm>
#include <cstring>

#include "common/isa.h"
#include "sparse_linear/half_kernels.h"
#include "sparse_linear/scratch.h"
#include "sparse_linear/sparse_linear_kernels.h"

namespace acdc {

ACDC_SELECT_ISA(SparseLinearKernels, sparse_linear_kernels)

const HalfKernels* half_kernels() {
  switch (cpu_fp16()) {
#ifdef ACDC_AVX512FP16
    case Fp16::native: return &half_kernels_native();
#endif
    case Fp16::emulated: return &half_kernels_emulated();
    default: return nullptr;
  }
}

namespace {

constexpr size_t kKeptScratch = size_t{16} << 20;  // bytes a thread keeps between calls
constexpr int64_t kChunkTiles = 8;                 // of the backward pass: what one chunk's tiles take stays in a core's cache

// Gives large memory back at the end of a call, however that ends.
struct Trim {
  Scratch* scratch;
  ~Trim() { scratch->trim(kKeptScratch); }
};

// This thread's own, for one tile and one panel; within an item of work.
class MyScratch {
 public:
  ~MyScratch() { scratch().trim(kKeptScratch); }
  float* get(int64_t floats) { return scratch().get(floats); }

 private:
  static Scratch& scratch() {
    static thread_local Scratch scratch;
    return scratch;
  }
};

using Apply = decltype(SparseLinearKernels::apply);

struct Tiles {
  int64_t samples;
  int64_t count() const { return (samples + kTile - 1) / kTile; }
  int64_t first(int64_t t) const { return t * kTile; }
  int64_t in(int64_t t) const { return std::min<int64_t>(kTile, samples - first(t)); }
  int width(int64_t t) const { return in(t) > kHalfTile ? kTile : kHalfTile; }
};

// Rows `panel` of side times the tile, from y's initial rows (the bias, or zero), transposed into out.
void panel_product(const SparseLinearKernels& kernels, Apply apply, int entry_values, const BundleSide& side, const float* values, int64_t panel,
                   const float* tile, int width, const float* bias, Batch<float> out, int64_t samples, float* y) {
  const int64_t rows = side.rows_in(panel), first = panel * side.panel_rows, blocks = side.blocks();
  if (bias != nullptr) {
    for (int64_t r = 0; r < rows; ++r) std::fill_n(y + r * width, width, bias[first + r]);
  } else {
    std::memset(y, 0, static_cast<size_t>(rows * width) * sizeof(float));
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t start = side.starts[panel * blocks + b];
    apply(side.first_bundle(panel, b), side.bundles_in(panel), side.offsets + (entry_values == 0 ? start / 4 : start),
          values + start * std::max(1, entry_values), tile + b * side.block_cols * width, y, width);
  }
  kernels.unpack(y, width, rows, out.data + first, out.stride, samples);
}

// One product (forward or input gradient) of a batch, or of a part of it.
struct Product {
  const SparseLinearKernels& kernels;
  Apply apply;
  int entry_values;  // values an entry of the side stands for; 0: an offset stands for a step of four rows
  const BundleSide& side;
  const float* values;
  const float* bias;
  Batch<const float> in;
  Batch<float> out;
  Tiles tiles;
  float* packed;  // [tile_floats] where packed input goes, or nullptr: it isn't kept

  int64_t y_floats() const { return (int64_t{side.panel_rows} + 1) * kTile; }

  void pack(int64_t t, float* tile) const {
    kernels.pack(in.data + tiles.first(t) * in.stride, in.stride, tiles.in(t), side.cols, tile, tiles.width(t));
  }
  void panel(int64_t t, int64_t p, const float* tile, float* y) const {
    panel_product(kernels, apply, entry_values, side, values, p, tile, tiles.width(t), bias, {out.data + tiles.first(t) * out.stride, out.stride},
                  tiles.in(t), y);
  }

  void run(const Pool& pool, Scratch& shared) const {
    const int64_t count = tiles.count(), panels = side.panels();
    if (count >= 2 * pool.threads || count % pool.threads == 0) {
      for_each_item(pool, count, [&](int, int64_t t) {
        MyScratch mine;
        float* y = mine.get(y_floats() + (packed != nullptr ? 0 : side.cols * kTile));
        float* tile = packed != nullptr ? packed + tiles.first(t) * side.cols : y + y_floats();
        pack(t, tile);
        for (int64_t p = 0; p < panels; ++p) panel(t, p, tile, y);
      });
      return;
    }
    float* all = packed != nullptr ? packed : shared.get(tile_floats(tiles.samples, side.cols));
    for_each_item(pool, count, [&](int, int64_t t) { pack(t, all + tiles.first(t) * side.cols); });
    for_each_item(pool, count * panels, [&](int, int64_t i) {
      MyScratch mine;
      panel(i % count, i / count, all + tiles.first(i % count) * side.cols, mine.get(y_floats()));
    });
  }
};

// out[i] += the weight gradient of every value, over the samples of x's and dy's tiles.
void weight_gradient(const SparseLinearKernels& kernels, const SparseWeight& w, const Tiles& tiles, const float* x, const float* dy, bool first,
                     float* out, const Pool& pool) {
  const BundleSide& side = w.rows_side;
  const int64_t blocks = side.blocks();
  const auto dots = w.format == BundleFormat::block4x1 ? kernels.dots_4x1 : kernels.dots;
  for_each_item(pool, side.panels() * blocks, [&](int, int64_t item) {
    const int64_t p = item / blocks, b = item % blocks, start = side.starts[item], end = side.starts[item + 1];
    if (start == end) return;
    const int16_t* offsets = side.offsets + (w.format == BundleFormat::block4x1 ? start / 4 : start);
    if (first) std::memset(out + start, 0, static_cast<size_t>(end - start) * sizeof(float));
    for (int64_t t = 0; t < tiles.count();) {
      const int width = tiles.width(t);
      const bool two = t + 1 < tiles.count() && tiles.width(t + 1) == kTile;
      auto x_tile = [&](int64_t i) { return x + tiles.first(i) * side.cols + b * side.block_cols * width; };
      auto dy_tile = [&](int64_t i) { return dy + tiles.first(i) * side.rows + p * side.panel_rows * width; };
      dots(side.first_bundle(p, b), side.bundles_in(p), offsets, x_tile(t), dy_tile(t), two ? x_tile(t + 1) : nullptr,
           two ? dy_tile(t + 1) : nullptr, out + start, width);
      t += two ? 2 : 1;
    }
  });
}

}  // namespace

void sparse_linear_forward_cpu(const SparseWeight& w, int64_t n, Batch<const float> x, const float* bias, Batch<float> y, float* tiles,
                               const Pool& pool) {
  if (n == 0 || (w.rows() == 0 && tiles == nullptr)) return;
  static thread_local Scratch shared;
  const Trim trim{&shared};
  const SparseLinearKernels& kernels = sparse_linear_kernels();
  const bool blocks = w.format == BundleFormat::block4x1;
  Product{kernels, blocks ? kernels.apply_4x1 : kernels.apply, blocks ? 0 : 1, w.rows_side, w.values, bias, x, y, {n}, tiles}.run(pool, shared);
}

void sparse_linear_forward_half_cpu(const SparseWeight& w, int64_t n, Batch<const float> x, const float* bias, Batch<float> y, float* tiles,
                                    const Pool& pool) {
  if (n == 0 || (w.rows() == 0 && tiles == nullptr)) return;
  static thread_local Scratch shared;
  const Trim trim{&shared};
  const SparseLinearKernels& kernels = sparse_linear_kernels();
  const HalfKernels& half = *half_kernels();
  const BundleSide& side = w.rows_side;
  uint16_t* values = reinterpret_cast<uint16_t*>(shared.get((w.kept + 1) / 2));
  const int64_t per_item = 16384;
  for_each_item(pool.for_elements(w.kept), (w.kept + per_item - 1) / per_item, [&](int, int64_t item) {
    const int64_t first = item * per_item;
    half.to_half(w.values + first, std::min(per_item, w.kept - first), values + first);
  });
  const Tiles all{n};
  for_each_item(pool, (all.count() + 1) / 2, [&](int, int64_t item) {
    const int64_t first = 2 * item * kTile, samples = std::min<int64_t>(kHalfTileWidth, n - first);
    const int width = samples > kTile ? kHalfTileWidth : kTile;
    const int64_t y_floats = (int64_t{side.panel_rows} + 1) * width, half_floats = side.cols * width / 2;
    MyScratch mine;
    float* sums = mine.get(y_floats + half_floats + side.cols * kTile);
    uint16_t* packed = reinterpret_cast<uint16_t*>(sums + y_floats);
    for (int64_t t = 2 * item; t < std::min(all.count(), 2 * item + 2); ++t) {
      float* tile = tiles != nullptr ? tiles + all.first(t) * side.cols : sums + y_floats + half_floats;
      const int own = all.width(t);
      kernels.pack(x.data + all.first(t) * x.stride, x.stride, all.in(t), side.cols, tile, own);
      uint16_t* to = packed + (all.first(t) - first);
      for (int64_t c = 0; c < side.cols; ++c, to += width) {
        half.to_half(tile + c * own, own, to);
        if (own < kTile) std::fill_n(to + own, kTile - own, uint16_t{0});
      }
    }
    for (int64_t p = 0; p < side.panels(); ++p) {
      const int64_t rows = side.rows_in(p), top = p * side.panel_rows;
      for (int64_t r = 0; r < rows; ++r) std::fill_n(sums + r * width, width, bias != nullptr ? bias[top + r] : 0.0f);
      for (int64_t b = 0; b < side.blocks(); ++b) {
        const int64_t start = side.starts[p * side.blocks() + b];
        half.apply(side.first_bundle(p, b), side.bundles_in(p), side.offsets + start, values + start, packed + b * side.block_cols * width, sums, width);
      }
      kernels.unpack(sums, width, rows, y.data + first * y.stride + top, y.stride, samples);
    }
  });
}

void sparse_linear_backward_cpu(const SparseWeight& w, int64_t n, const SparseLinearGradients& g, const Pool& pool) {
  if (g.dvalues != nullptr && (n == 0 || w.rows() == 0 || w.cols() == 0)) std::memset(g.dvalues, 0, static_cast<size_t>(w.kept) * sizeof(float));
  if (n == 0 || w.cols() == 0) return;
  static thread_local Scratch transposed, dy_tiles, x_tiles;
  const Trim trims[] = {{&transposed}, {&dy_tiles}, {&x_tiles}};
  const SparseLinearKernels& kernels = sparse_linear_kernels();
  const bool blocks = w.format == BundleFormat::block4x1;
  const int64_t entry_values = blocks ? 4 : 1;
  const float* values = nullptr;
  if (g.dx.data != nullptr) {
    float* to = transposed.get(w.kept);
    const int64_t per_item = 8192, entries = w.kept / entry_values;
    for_each_item(pool.for_elements(4 * w.kept), (entries + per_item - 1) / per_item, [&](int, int64_t item) {
      const int64_t last = std::min(entries, (item + 1) * per_item);
      if (blocks) {
        for (int64_t i = item * per_item; i < last; ++i) std::memcpy(to + 4 * i, w.values + 4 * int64_t{w.permutation[i]}, 16);
      } else {
        for (int64_t i = item * per_item; i < last; ++i) to[i] = w.values[w.permutation[i]];
      }
    });
    values = to;
  }
  // A bundle's missing rows are read (never used) a panel further on.
  const int64_t slack = (int64_t{w.rows_side.panel_rows} + 1) * kTile;
  const int64_t chunk = kTile * kChunkTiles * std::max<int64_t>(1, (pool.threads + kChunkTiles - 1) / kChunkTiles);
  for (int64_t first = 0; first < n; first += chunk) {
    const Tiles tiles{std::min(chunk, n - first)};
    const Batch<const float> dy{g.dy.data + first * g.dy.stride, g.dy.stride};
    float* packed = dy_tiles.get(tile_floats(tiles.samples, w.rows()) + slack);
    if (g.dx.data != nullptr) {
      Product{kernels,    blocks ? kernels.apply_1x4 : kernels.apply, static_cast<int>(entry_values), w.cols_side, values, nullptr, dy,
              {g.dx.data + first * g.dx.stride, g.dx.stride},         tiles,                          packed}
          .run(pool, dy_tiles);
    } else {
      for_each_item(pool, tiles.count(), [&](int, int64_t t) {
        kernels.pack(dy.data + tiles.first(t) * dy.stride, dy.stride, tiles.in(t), w.rows(), packed + tiles.first(t) * w.rows(), tiles.width(t));
      });
    }
    if (g.dvalues == nullptr) continue;
    const float* x = g.tiles != nullptr ? g.tiles + first * w.cols() : nullptr;
    if (x == nullptr) {
      float* to = x_tiles.get(tile_floats(tiles.samples, w.cols()));
      for_each_item(pool, tiles.count(), [&](int, int64_t t) {
        kernels.pack(g.x.data + (first + tiles.first(t)) * g.x.stride, g.x.stride, tiles.in(t), w.cols(), to + tiles.first(t) * w.cols(),
                     tiles.width(t));
      });
      x = to;
    }
    weight_gradient(kernels, w, tiles, x, packed, first == 0, g.dvalues, pool);
  }
}

}  // namespace acdc
