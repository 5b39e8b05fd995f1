// topk_mask against a full sort; which path ran; the bracket's miss and overflow; thread counts; memory.
#include "topk/topk.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "tests/testing.h"

using namespace acdc;
using namespace acdc::testing;

namespace {

struct Result {
  std::vector<std::vector<uint8_t>> bits;
  std::vector<int64_t> nan;
  TopkPath path;
};

Result run(std::vector<std::vector<float>>& weights, int64_t keep, int threads, bool force_radix) {
  const int n = static_cast<int>(weights.size());
  std::vector<std::unique_ptr<Vector>> vectors;
  std::vector<TensorRef> refs;
  std::vector<uint8_t*> out;
  Result r;
  r.nan.assign(n, -1);
  int64_t total = 0;
  for (auto& w : weights) {
    vectors.push_back(std::make_unique<Vector>(w));
    refs.push_back(vectors.back()->ref);
    r.bits.emplace_back((w.size() + 7) / 8, uint8_t{0xa5});  // poisoned: every byte must be written
    total += static_cast<int64_t>(w.size());
  }
  for (auto& b : r.bits) out.push_back(b.data());
  const int64_t bytes = topk_scratch_bytes(DType::f32, total, threads);
  CHECK(bytes <= total * 4 * 3 / 100 + (1 << 20));
  void* scratch = std::aligned_alloc(64, static_cast<size_t>(bytes + 63) / 64 * 64);
  r.path = topk_mask_cpu({DType::f32, refs.data(), out.data(), r.nan.data(), n, keep}, scratch, bytes, pool(threads), force_radix);
  std::free(scratch);
  return r;
}

void check(std::vector<std::vector<float>>& weights, int64_t keep, TopkPath path) {
  struct Entry {
    uint32_t key;
    int tensor;
    int64_t index;
  };
  std::vector<Entry> all;
  std::vector<int64_t> nan(weights.size(), 0);
  for (size_t t = 0; t < weights.size(); ++t)
    for (size_t i = 0; i < weights[t].size(); ++i) {
      uint32_t u;
      std::memcpy(&u, &weights[t][i], 4);
      nan[t] += std::isnan(weights[t][i]);
      all.push_back({std::min(u & 0x7fffffffu, 0x7f800001u), static_cast<int>(t), static_cast<int64_t>(i)});
    }
  std::stable_sort(all.begin(), all.end(), [](const Entry& a, const Entry& b) { return a.key > b.key; });
  std::vector<std::vector<uint8_t>> want;
  for (auto& w : weights) want.emplace_back((w.size() + 7) / 8, uint8_t{0});
  for (int64_t i = 0; i < keep; ++i) want[all[i].tensor][all[i].index >> 3] |= static_cast<uint8_t>(1u << (all[i].index & 7));
  for (int threads : {1, 2, 5}) {
    Result quick = run(weights, keep, threads, false), radix = run(weights, keep, threads, true);
    CHECK(quick.bits == want && radix.bits == want);
    CHECK(quick.nan == nan && radix.nan == nan);
    CHECK(quick.path == path && radix.path == TopkPath::radix);
  }
}

std::vector<float> bell(int64_t n, double scale, uint64_t seed) {
  Random random{seed};
  std::vector<float> w(static_cast<size_t>(n));
  for (float& x : w) x = static_cast<float>(random.bell() * scale);
  return w;
}

}  // namespace

int main(int argc, char** argv) {
  skip_unless_available(argc, argv);
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    for (int threads : {1, 2, 16, 64, 256})
      for (int64_t numel = 1; numel < int64_t{1} << 40; numel *= 3)
        CHECK(topk_scratch_bytes(dtype, numel, threads) <= numel * element_bytes(dtype) / 40 + 900 * 1024);

  std::vector<std::vector<float>> model{bell(300000, 1, 1), bell(7, 1, 2), {}, bell(200001, 0.2, 3), bell(1, 1, 4)};
  const int64_t total = 500009;
  for (int64_t keep : {total / 10, total / 2, total / 50, total - total / 100}) check(model, keep, TopkPath::bracket);
  for (int64_t keep : {int64_t{1}, int64_t{5}, total - 1}) check(model, keep, TopkPath::bracket);
  for (int64_t keep : {int64_t{0}, total}) check(model, keep, TopkPath::radix);

  // Small weights and few of them kept: the bracket reaches from the threshold to the largest key there is.
  std::vector<std::vector<float>> faint{bell(300000, 0.02, 7), bell(100, 1e-30, 8)};
  for (int64_t keep : {1, 5, 30, 500, 300099}) check(faint, keep, TopkPath::bracket);

  std::vector<std::vector<float>> small{bell(1000, 1, 5), bell(63, 3, 6)};
  for (int64_t keep : {1, 100, 1062}) check(small, keep, TopkPath::radix);

  // Everything ties: the bracket holds all of it and overflows.
  std::vector<std::vector<float>> ties{std::vector<float>(400000, 0.5f), std::vector<float>(9, -0.5f)};
  check(ties, 40000, TopkPath::bracket_missed);
  // Zeros below, a tie above: the threshold is a single key that no bracket can split.
  for (size_t i = 0; i < 300000; ++i) ties[0][i] = i % 3 ? -0.0f : 0.0f;
  check(ties, 70000, TopkPath::bracket_missed);
  check(ties, 250000, TopkPath::bracket_missed);

  // NaN and Inf are counted by the exact path and order highest.
  model[0][17] = std::numeric_limits<float>::quiet_NaN();
  model[3][200000] = -std::numeric_limits<float>::quiet_NaN();
  model[0][99999] = -std::numeric_limits<float>::infinity();
  for (int64_t keep : {int64_t{1}, int64_t{2}, int64_t{3}, total / 10}) check(model, keep, TopkPath::bracket_missed);
  std::puts("test_topk passed");
}
