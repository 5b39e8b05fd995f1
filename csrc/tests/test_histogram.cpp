// magnitude_histogram against counting key by key: every dtype, intervals anywhere, one row or a row each, any number of threads.
#include "topk/histogram.h"

#include <algorithm>
#include <memory>

#include "tests/testing.h"
#include "topk/key_rule.h"

using namespace acdc;
using namespace acdc::testing;

namespace {

template <class U>
void check(const std::vector<std::vector<U>>& weights, DType dtype, const std::vector<int64_t>& base, bool row_each, int width, int shift) {
  const KeyRule<U> rule = rule_for<U>(dtype);
  const int64_t bins = int64_t{1} << (width - shift), rows = row_each ? static_cast<int64_t>(weights.size()) : 1;
  std::vector<int64_t> want(rows * (bins + 1), 0);
  std::vector<std::vector<U>> copies = weights;
  std::vector<std::unique_ptr<Vector>> vectors;
  std::vector<TensorRef> refs;
  for (size_t t = 0; t < weights.size(); ++t) {
    const int64_t row = row_each ? static_cast<int64_t>(t) : 0;
    for (U u : weights[t]) {
      const U key = std::min<U>(static_cast<U>(u & rule.magnitude), rule.nan);
      if (key < static_cast<U>(base[row])) continue;
      const uint64_t bin = (uint64_t{key} - static_cast<uint64_t>(base[row])) >> shift;
      ++want[row * (bins + 1) + std::min<int64_t>(static_cast<int64_t>(bin), bins)];
    }
    vectors.push_back(std::make_unique<Vector>(copies[t]));
    refs.push_back(vectors.back()->ref);
  }
  for (int threads : {1, 2, 5, 32}) {
    const int64_t bytes = histogram_scratch_bytes(width, shift, threads);
    CHECK(bytes <= 256 * 1024);
    std::vector<uint32_t> scratch(static_cast<size_t>(bytes / 4), 0xa5a5a5a5u);
    std::vector<int64_t> counts(want.size(), -1);
    magnitude_histogram_cpu({dtype, refs.data(), static_cast<int>(refs.size()), base.data(), row_each, width, shift}, counts.data(),
                            scratch.data(), pool(threads));
    CHECK(counts == want);
  }
}

template <class U>
void check_all(DType dtype) {
  constexpr int kBits = sizeof(U) * 8 - 1;
  const KeyRule<U> rule = rule_for<U>(dtype);
  Random random{99};
  std::vector<std::vector<U>> weights;
  for (int64_t n : {40000, 7, 0, 70001, 1, 16384}) {
    weights.emplace_back();
    for (int64_t i = 0; i < n; ++i) weights.back().push_back(static_cast<U>(random.next()));
  }
  for (size_t i = 0; i < 9000; ++i) weights[3][i] = static_cast<U>(i % 2 ? rule.nan + i : rule.nan - 1);  // NaNs and Infs
  for (size_t i = 9000; i < 30000; ++i) weights[3][i] = static_cast<U>(5);                                // ties
  for (int width = 0; width <= kBits; width += width < 4 ? 1 : 5)
    for (int shift : {std::max(width - kHistogramBits, 0), std::max(width - 1, 0), width})
      for (int64_t first : {int64_t{0}, int64_t{5}, static_cast<int64_t>(weights[0][3] & rule.magnitude), static_cast<int64_t>(rule.nan),
                            static_cast<int64_t>(rule.magnitude)}) {
        check(weights, dtype, {first}, false, width, shift);
        check(weights, dtype, {first, 0, 1, first, 5, static_cast<int64_t>(rule.nan - 1)}, true, width, shift);
      }
}

}  // namespace

int main(int argc, char** argv) {
  skip_unless_available(argc, argv);
  check_all<uint32_t>(DType::f32);
  check_all<uint64_t>(DType::f64);
  check_all<uint16_t>(DType::bf16);
  check_all<uint16_t>(DType::f16);
  std::puts("test_histogram passed");
}
