// Topologies by the CUDA kernels, emulated: the CPU's to the bit; and whatever masks and counts say, nothing is written beside the arrays.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "sparse_linear/bundles_cuda.h"
#include "tests/testing.h"

using namespace acdc;
using acdc::testing::Random;

namespace {

// `count` elements between guards, aligned to 16 bytes.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count, int fill = 0) : count_(static_cast<size_t>(count)), memory_(2 * kGuard + count_ * sizeof(T) + 16, kMark) {
    std::memset(data(), fill, count_ * sizeof(T));
  }
  T* data() const { return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.data()) + 15) / 16 * 16 + kGuard); }
  T& operator[](int64_t i) { return data()[i]; }
  bool intact() const {
    const uint8_t *begin = reinterpret_cast<const uint8_t*>(data()), *end = begin + count_ * sizeof(T);
    return std::all_of(begin - kGuard, begin, marked) && std::all_of(end, end + kGuard, marked);
  }
  bool same(const Guarded& other) const { return std::memcmp(data(), other.data(), count_ * sizeof(T)) == 0; }

 private:
  static constexpr size_t kGuard = 1024;
  static constexpr uint8_t kMark = 0x5c;
  static bool marked(uint8_t byte) { return byte == kMark; }
  size_t count_;
  std::vector<uint8_t> memory_;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Index {
  BundleIndex at;
  int64_t entries;
  Guarded<int64_t> rank, starts, t_starts;
  Guarded<int32_t> position, t_permutation;
  Guarded<Bundle> bundles, t_bundles;
  Guarded<int16_t> offsets, t_offsets;
  Guarded<uint8_t> scratch;

  // `from` says the sizes.
  explicit Index(const BundleIndex& from)
      : at(from),
        entries(from.format == BundleFormat::block4x1 ? from.kept / 4 : from.kept),
        rank(ceil_div(from.rows * from.cols, kRankElements) + 1, 0x11),
        starts(ceil_div(from.rows, from.panel_rows) * ceil_div(from.cols, from.block_cols) + 1, 0x11),
        t_starts(ceil_div(from.cols, from.t_panel_rows) * ceil_div(from.rows, from.t_block_cols) + 1, 0x11),
        position(from.kept, 0x7f),
        t_permutation(entries, 0x7f),
        bundles(bundle_count(from.rows, from.cols, from.panel_rows, from.block_cols), 0x11),
        t_bundles(bundle_count(from.cols, from.rows, from.t_panel_rows, from.t_block_cols), 0x11),
        offsets(entries, 0x11),
        t_offsets(entries, 0x11),
        scratch(build_bundles_scratch(from.rows, from.cols)) {
    at.rank = rank.data(), at.starts = starts.data(), at.t_starts = t_starts.data(), at.position = position.data();
    at.t_permutation = t_permutation.data(), at.bundles = bundles.data(), at.t_bundles = t_bundles.data();
    at.offsets = offsets.data(), at.t_offsets = t_offsets.data();
  }

  void build(const uint8_t* bits) {
    CHECK(build_bundles_cuda(bits, at, scratch.data(), nullptr) == cudaSuccess);
    CHECK(rank.intact() && starts.intact() && t_starts.intact() && position.intact() && t_permutation.intact());
    CHECK(bundles.intact() && t_bundles.intact() && offsets.intact() && t_offsets.intact() && scratch.intact());
  }

  bool same(const Index& o) const {
    return rank.same(o.rank) && starts.same(o.starts) && t_starts.same(o.t_starts) && position.same(o.position) && t_permutation.same(o.t_permutation) &&
           bundles.same(o.bundles) && t_bundles.same(o.t_bundles) && offsets.same(o.offsets) && t_offsets.same(o.t_offsets);
  }

  ValuePlaces places(const uint8_t* bits) const { return {bits, at.rank, at.position, at.rows, at.cols, at.kept}; }
};

// A mask that may start at any byte.
struct Mask {
  Guarded<uint8_t> memory;
  int64_t cols, skip, bytes;

  Mask(int64_t rows, int64_t columns, int64_t start) : memory((rows * columns + 7) / 8 + start), cols(columns), skip(start), bytes((rows * columns + 7) / 8) {}
  uint8_t* bits() { return memory.data() + skip; }
  void keep(int64_t row, int64_t col) { bits()[(row * cols + col) / 8] |= static_cast<uint8_t>(1 << (row * cols + col) % 8); }
  int64_t count(int64_t begin, int64_t end) {
    int64_t n = 0;
    for (int64_t i = begin; i < end; ++i) n += bits()[i / 8] >> i % 8 & 1;
    return n;
  }
};

int pick(Random& random, std::initializer_list<int> from) { return *(from.begin() + random.next() % from.size()); }

struct Case {
  BundleIndex shape{};
  Mask mask;

  Case(Random& random, int64_t rows, int64_t cols, bool grouped) : mask(rows, cols, static_cast<int64_t>(random.next() % 5)) {
    const double density = pick(random, {0, 2, 10, 50, 95, 100}) / 100.0;
    for (int64_t r = 0; r < rows; r += grouped ? 4 : 1)
      for (int64_t c = 0; c < cols; ++c)
        if (random.unit() < density * (r % 3 ? 1 : 1.5))
          for (int64_t s = 0; s < (grouped ? 4 : 1); ++s) mask.keep(r + s, c);
    shape.rows = rows, shape.cols = cols, shape.kept = mask.count(0, rows * cols);
    shape.panel_rows = pick(random, {4, 12, 64, 512, 4096}), shape.block_cols = pick(random, {4, 20, 256, 512});
    shape.t_panel_rows = pick(random, {4, 12, 64, 512, 4096}), shape.t_block_cols = pick(random, {4, 20, 256, 512});
    shape.format = grouped ? BundleFormat::block4x1 : BundleFormat::single;
  }
};

void check_index(Case& c) {
  Index want(c.shape), got(c.shape);
  CHECK(build_bundles_cpu(c.mask.bits(), want.at, acdc::testing::pool(1)) == BundleError::none);
  got.build(c.mask.bits());
  CHECK(got.same(want));
}

// Another number of kept weights than the mask's, and rows of a group that differ: garbage, inside of the arrays.
void check_lies(Random& random, Case c) {
  const int64_t n = c.shape.rows * c.shape.cols;
  if (n == 0) return;
  Case other = c;
  other.shape.kept = static_cast<int64_t>(random.next() % static_cast<uint64_t>(c.shape.kept + 8)) / 4 * 4;
  Index(other.shape).build(other.mask.bits());
  if (c.shape.format == BundleFormat::block4x1 && c.shape.kept > 0)
    for (int i = 0; i < 8; ++i) other.mask.bits()[random.next() % static_cast<uint64_t>(other.mask.bytes)] ^= static_cast<uint8_t>(1 << random.next() % 8);
  other.mask.bits()[other.mask.bytes - 1] |= 0x80;  // perhaps beyond the last element
  Index(other.shape).build(other.mask.bits());
}

template <class T>
void check_values(Random& random, Case& c, bool transposed) {
  const int64_t rows = c.shape.rows, cols = c.shape.cols, n = rows * cols, row_stride = transposed ? 1 : cols, col_stride = transposed ? rows : 1;
  Index index(c.shape);
  index.build(c.mask.bits());
  Guarded<T> weight(n), values(c.shape.kept, 0xff), again(n, 0xff);
  for (int64_t i = 0; i < n; ++i) weight[i] = static_cast<T>((random.next() | 1) & ~uint64_t{8});  // neither 0 nor NaN
  auto at = [&](int64_t i) { return weight[i / cols * row_stride + i % cols * col_stride]; };
  auto move = [&] {
    CHECK(gather_values_cuda(weight.data(), row_stride, col_stride, index.places(c.mask.bits()), sizeof(T), values.data(), nullptr) == cudaSuccess);
    CHECK(scatter_values_cuda(values.data(), index.places(c.mask.bits()), sizeof(T), again.data(), nullptr) == cudaSuccess);
    CHECK(values.intact() && again.intact());
  };
  move();
  for (int64_t i = 0, k = 0; i < n; ++i) {
    const bool kept = c.mask.bits()[i / 8] >> i % 8 & 1;
    CHECK(again[i] == (kept ? at(i) : 0));
    if (kept) CHECK(values[index.position[k++]] == at(i));
  }
  if (n == 0 || c.shape.kept == 0) return;
  // The mask changes: runs that keep another number than before become NaN, the others are right.
  for (int i = 0; i < 3; ++i) c.mask.bits()[random.next() % static_cast<uint64_t>(c.mask.bytes)] = static_cast<uint8_t>(random.next());
  std::memset(values.data(), 0, static_cast<size_t>(c.shape.kept) * sizeof(T));
  move();
  const T nan = static_cast<T>(static_cast<T>(~T{0}) >> 1);
  for (int64_t begin = 0, run = 0; begin < n; begin += kRankElements, ++run) {
    const int64_t end = std::min(n, begin + kRankElements);
    const bool same = index.rank[run + 1] - index.rank[run] == c.mask.count(begin, end);
    for (int64_t k = index.rank[run]; k < index.rank[run + 1]; ++k) CHECK((values[index.position[k]] == nan) == !same);
    for (int64_t i = begin; i < end; ++i) {
      const bool kept = c.mask.bits()[i / 8] >> i % 8 & 1;
      CHECK(again[i] == (!kept ? T{0} : same ? at(i) : nan));
    }
  }
  // Positions that no index has.
  for (int64_t k = 0; k < c.shape.kept; ++k) index.position[k] = static_cast<int32_t>(random.next());
  move();
}

}  // namespace

int main() {
  Random random{42};
  const int64_t shapes[][2] = {{0, 5}, {5, 0}, {1, 1}, {1, 4100}, {4100, 1}, {37, 513}, {130, 70}, {64, 64}, {21, 1030}, {4200, 3}, {516, 36}};
  for (int order : ACDC_EMULATED_THREADS > 64 ? std::vector<int>{8} : std::vector<int>{0, 1, 7}) {
    setenv("ACDC_EMULATOR_ORDER", std::to_string(order).c_str(), 1);
    for (const auto& shape : shapes)
      for (bool grouped : {false, true}) {
        Case c(random, grouped ? (shape[0] + 3) / 4 * 4 : shape[0], shape[1], grouped);
        check_index(c);
        check_lies(random, c);
        check_values<uint16_t>(random, c, false);
        Case d(random, c.shape.rows, c.shape.cols, grouped);
        check_values<uint32_t>(random, d, true);
        Case e(random, c.shape.rows, c.shape.cols, grouped);
        check_values<uint64_t>(random, e, order == 7);
      }
  }
  std::puts("ok");
}
