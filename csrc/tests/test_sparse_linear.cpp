// Index, gather and scatter, and the three products of sparse_linear, against loops over the kept weights in double.
#include "sparse_linear/sparse_linear.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "sparse_linear/half_kernels.h"
#include "tests/testing.h"

using namespace acdc;
using namespace acdc::testing;

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Index {
  std::vector<int64_t> rank, starts, t_starts;
  std::vector<int32_t> position, t_permutation;
  std::vector<Bundle> bundles, t_bundles;
  std::vector<int16_t> offsets, t_offsets;
  BundleIndex view;

  Index(int64_t rows, int64_t cols, int64_t kept, int32_t panel, int32_t block, int32_t t_panel, int32_t t_block, BundleFormat format) {
    const int64_t entries = format == BundleFormat::block4x1 ? kept / 4 : kept;
    rank.assign(ceil_div(rows * cols, kRankElements) + 1, -1);
    position.assign(kept, -1);
    bundles.resize(bundle_count(rows, cols, panel, block));
    t_bundles.resize(bundle_count(cols, rows, t_panel, t_block));
    starts.assign(ceil_div(rows, panel) * ceil_div(cols, block) + 1, -1);
    t_starts.assign(ceil_div(cols, t_panel) * ceil_div(rows, t_block) + 1, -1);
    offsets.assign(entries, -1);
    t_offsets.assign(entries, -1);
    t_permutation.assign(entries, -1);
    view = {rows, cols, kept, panel, block, t_panel, t_block, format, rank.data(), position.data(), bundles.data(), starts.data(), offsets.data(),
            t_bundles.data(), t_starts.data(), t_offsets.data(), t_permutation.data()};
  }
};

struct Case {
  int64_t rows, cols, n;
  double density;
  int32_t panel, block, t_panel, t_block;
  BundleFormat format;
};

void check(const Case& c, Random& random, int threads) {
  const int group = c.format == BundleFormat::block4x1 ? 4 : 1;
  std::vector<uint8_t> bits(ceil_div(c.rows * c.cols, 8), 0);
  std::vector<float> weight(c.rows * c.cols), x(c.n * c.cols), dy(c.n * c.rows), bias(c.rows);
  std::vector<int64_t> kept;
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t k = 0; k < c.cols; ++k) {
      const int64_t i = r * c.cols + k, first = r / group * group * c.cols + k;
      const bool keep = r % group == 0 ? random.unit() < c.density : (bits[first >> 3] >> (first & 7) & 1) != 0;
      if (keep) {
        bits[i >> 3] = static_cast<uint8_t>(bits[i >> 3] | 1 << (i & 7));
        kept.push_back(i);
      }
      weight[i] = keep ? static_cast<float>(random.bell()) : std::numeric_limits<float>::quiet_NaN();
    }
  for (auto* v : {&x, &dy, &bias})
    for (float& e : *v) e = static_cast<float>(random.bell());

  const int64_t nnz = static_cast<int64_t>(kept.size());
  Index index(c.rows, c.cols, nnz, c.panel, c.block, c.t_panel, c.t_block, c.format);
  CHECK(build_bundles_cpu(bits.data(), index.view, pool(threads)) == BundleError::none);
  std::vector<uint8_t> seen(nnz, 0);
  for (int32_t p : index.position) {
    CHECK(p >= 0 && p < nnz && !seen[p]);
    seen[p] = 1;
  }
  std::vector<float> values(nnz, -7), back(c.rows * c.cols, -7);
  const BundleError gathered = gather_values_cpu(weight.data(), c.cols, 1, bits.data(), index.rank.data(), index.position.data(), c.rows, c.cols, 4,
                                                 values.data(), pool(threads));
  CHECK(gathered == BundleError::none);
  for (int64_t k = 0; k < nnz; ++k) CHECK(values[index.position[k]] == weight[kept[k]]);
  const BundleError scattered = scatter_values_cpu(values.data(), bits.data(), index.rank.data(), index.position.data(), c.rows, c.cols, 4,
                                                   back.data(), pool(threads));
  CHECK(scattered == BundleError::none);
  for (int64_t i = 0; i < c.rows * c.cols; ++i) {
    const bool keep = (bits[i >> 3] >> (i & 7) & 1) != 0;
    CHECK(keep ? back[i] == weight[i] : back[i] == 0 && !std::signbit(back[i]));
  }

  const SparseWeight w{c.format, nnz, values.data(),
                       {c.rows, c.cols, c.panel, c.block, index.bundles.data(), index.starts.data(), index.offsets.data()},
                       {c.cols, c.rows, c.t_panel, c.t_block, index.t_bundles.data(), index.t_starts.data(), index.t_offsets.data()},
                       index.t_permutation.data()};
  std::vector<float> y(c.n * c.rows, NAN), dx(c.n * c.cols, NAN), dvalues(nnz, NAN), again(nnz, NAN), tiles(tile_floats(c.n, c.cols), NAN);
  sparse_linear_forward_cpu(w, c.n, {x.data(), c.cols}, bias.data(), {y.data(), c.rows}, tiles.data(), pool(threads));
  sparse_linear_backward_cpu(w, c.n, {{dy.data(), c.rows}, {nullptr, 0}, tiles.data(), {dx.data(), c.cols}, dvalues.data()}, pool(threads));
  sparse_linear_backward_cpu(w, c.n, {{dy.data(), c.rows}, {x.data(), c.cols}, nullptr, {nullptr, 0}, again.data()}, pool(1));
  CHECK(nnz == 0 || std::memcmp(dvalues.data(), again.data(), nnz * sizeof(float)) == 0);  // packed or not, whatever the threads

  std::vector<float> y_half(c.n * c.rows, NAN), half_tiles(tiles.size(), NAN);
  const bool half = c.format == BundleFormat::single && half_kernels() != nullptr;
  if (half) {
    sparse_linear_forward_half_cpu(w, c.n, {x.data(), c.cols}, bias.data(), {y_half.data(), c.rows}, half_tiles.data(), pool(threads));
    CHECK(tiles.empty() || std::memcmp(tiles.data(), half_tiles.data(), tiles.size() * sizeof(float)) == 0);
    sparse_linear_forward_half_cpu(w, c.n, {x.data(), c.cols}, bias.data(), {y_half.data(), c.rows}, nullptr, pool(1));
  }

  std::vector<double> y_want(c.n * c.rows), y_size(c.n * c.rows), dx_want(c.n * c.cols), dx_size(c.n * c.cols);
  for (int64_t n = 0; n < c.n; ++n)
    for (int64_t r = 0; r < c.rows; ++r) y_size[n * c.rows + r] = std::fabs(y_want[n * c.rows + r] = bias[r]);
  const double eps = std::numeric_limits<float>::epsilon();
  for (int64_t k = 0; k < nnz; ++k) {
    const int64_t r = kept[k] / c.cols, col = kept[k] % c.cols;
    double dv = 0, size = 0;
    for (int64_t n = 0; n < c.n; ++n) {
      const double a = double{weight[kept[k]]} * x[n * c.cols + col], b = double{weight[kept[k]]} * dy[n * c.rows + r];
      y_want[n * c.rows + r] += a;
      y_size[n * c.rows + r] += std::fabs(a);
      dx_want[n * c.cols + col] += b;
      dx_size[n * c.cols + col] += std::fabs(b);
      const double d = double{dy[n * c.rows + r]} * x[n * c.cols + col];
      dv += d;
      size += std::fabs(d);
    }
    CHECK(std::fabs(dvalues[index.position[k]] - dv) <= 8 * eps * size);
  }
  for (int64_t i = 0; i < c.n * c.rows; ++i) CHECK(std::fabs(y[i] - y_want[i]) <= 8 * eps * y_size[i]);
  // Inputs and weights rounded to 11 bits, and 16 roundings of a sum of products.
  for (int64_t i = 0; half && i < c.n * c.rows; ++i) CHECK(std::fabs(y_half[i] - y_want[i]) <= 18 * 0x1p-11 * y_size[i] + 1e-4);
  for (int64_t i = 0; i < c.n * c.cols; ++i) CHECK(std::fabs(dx[i] - dx_want[i]) <= 8 * eps * dx_size[i]);
}

int32_t size(Random& random) { return static_cast<int32_t>(4 + 4 * (random.next() % 9)); }

}  // namespace

int main(int argc, char** argv) {
  skip_unless_available(argc, argv);
  CHECK(std::getenv("ACDC_CPU_FP16") == nullptr || half_kernels() != nullptr);
  Random random{11};
  for (BundleFormat format : {BundleFormat::single, BundleFormat::block4x1})
    for (double density : {0.0, 0.01, 0.1, 0.5, 1.0})
      for (int64_t n : {1, 15, 16, 17, 33, 70})
        check({4 * (1 + static_cast<int64_t>(random.next() % 20)), 1 + static_cast<int64_t>(random.next() % 90), n, density,
               size(random), size(random), size(random), size(random), format},
              random, 3);
  for (int64_t rows : {1, 2, 3, 5, 513}) check({rows, 37, 20, 0.3, 512, 256, 512, 256, BundleFormat::single}, random, 2);
  check({0, 5, 3, 0.5, 512, 256, 512, 256, BundleFormat::single}, random, 2);
  check({5, 0, 3, 0.5, 512, 256, 512, 256, BundleFormat::single}, random, 2);
  check({8, 9, 0, 0.5, 512, 256, 512, 256, BundleFormat::single}, random, 2);
  check({1030, 700, 530, 0.1, 512, 256, 512, 256, BundleFormat::single}, random, 2);
  check({520, 1030, 300, 0.05, 512, 512, 512, 512, BundleFormat::block4x1}, random, 3);

  // A mask that doesn't keep as many as it should, and groups of four that differ.
  std::vector<uint8_t> bits(8, 0x0f);
  Index wrong(8, 8, 31, 512, 256, 512, 256, BundleFormat::single);
  CHECK(build_bundles_cpu(bits.data(), wrong.view, pool(1)) == BundleError::count_differs);
  bits[1] = 0xf0;
  Index uneven(8, 8, 32, 512, 256, 512, 256, BundleFormat::block4x1);
  CHECK(build_bundles_cpu(bits.data(), uneven.view, pool(1)) == BundleError::groups_differ);

  // A mask that was changed since: as many bits more, or fewer, as there is room for.
  for (const uint8_t now : {0x00, 0xff}) {
    std::vector<uint8_t> mask(70 * 100 / 8, 0x0f);
    Index before(70, 100, 3500, 512, 256, 512, 256, BundleFormat::single);
    CHECK(build_bundles_cpu(mask.data(), before.view, pool(1)) == BundleError::none);
    mask[mask.size() / 2] = now;
    std::vector<float> weight(7000, 1), values(3500);
    CHECK(gather_values_cpu(weight.data(), 100, 1, mask.data(), before.rank.data(), before.position.data(), 70, 100, 4, values.data(), pool(2)) ==
          BundleError::mask_differs);
    CHECK(scatter_values_cpu(values.data(), mask.data(), before.rank.data(), before.position.data(), 70, 100, 4, weight.data(), pool(2)) ==
          BundleError::mask_differs);
  }
  std::puts("ok");
}
