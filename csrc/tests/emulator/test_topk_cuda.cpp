// topk_mask's CUDA kernels against a full sort; which path ran; the bracket's miss and overflows; orders of threads and blocks; memory.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "tests/testing.h"
#include "topk/topk.cu"

using namespace acdc;
using namespace acdc::testing;

namespace {

constexpr int kOrders[] = {0, 1, 7, 8};  // 8: one warp runs ahead of the others
constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

using Model = std::vector<std::vector<float>>;

struct Result {
  std::vector<std::vector<uint8_t>> bits;
  std::vector<int64_t> nan;
  TopkPath path;
  bool operator==(const Result& o) const { return bits == o.bits && nan == o.nan; }
};

constexpr uint8_t kPoison = 0xa5;

Result run(const Model& model, int64_t keep, bool force_radix) {
  Result r;
  std::vector<DeviceWeight> weights;
  int64_t total = 0;
  for (const auto& w : model) r.bits.emplace_back((w.size() + 31) / 32 * 4 + 4, kPoison);
  for (size_t t = 0; t < model.size(); ++t) {
    Layout layout{};
    layout.numel = static_cast<int64_t>(model[t].size());
    total += layout.numel;
    weights.push_back({model[t].data(), r.bits[t].data(), layout});
  }
  r.nan.assign(model.size(), -1);
  const TopkCudaProblem problem{DType::f32, weights.data(), static_cast<int64_t>(model.size()), r.nan.data(), keep};
  const int64_t bytes = topk_cuda_scratch_bytes(problem);
  CHECK(bytes <= total * 4 * 3 / 100 + (1 << 20));
  std::vector<Bytes16> scratch(static_cast<size_t>(bytes / 16 + 2), Bytes16{{0xa5a5a5a5u, 0xa5a5a5a5u, 0xa5a5a5a5u, 0xa5a5a5a5u}});
  CHECK(topk_mask_cuda(problem, scratch.data(), force_radix, nullptr) == cudaSuccess);
  r.path = static_cast<TopkPath>(scratch[0].word[0]);
  CHECK(scratch[static_cast<size_t>((bytes + 15) / 16)].word[0] == 0xa5a5a5a5u);
  for (size_t t = 0; t < model.size(); ++t) {  // nothing behind the last byte
    const size_t n = (model[t].size() + 7) / 8;
    for (size_t i = n; i < r.bits[t].size(); ++i) CHECK(r.bits[t][i] == kPoison);
    r.bits[t].resize(n);
  }
  return r;
}

Result sorted(const Model& model, int64_t keep) {
  struct Item {
    uint32_t key;
    size_t tensor, index;
  };
  std::vector<Item> all;
  Result r;
  for (size_t t = 0; t < model.size(); ++t) {
    r.bits.emplace_back((model[t].size() + 7) / 8, uint8_t{0});
    r.nan.push_back(0);
    for (size_t i = 0; i < model[t].size(); ++i) {
      uint32_t u;
      std::memcpy(&u, &model[t][i], 4);
      r.nan[t] += std::isnan(model[t][i]);
      all.push_back({std::min(u & 0x7fffffffu, 0x7f800001u), t, i});
    }
  }
  std::stable_sort(all.begin(), all.end(), [](const Item& a, const Item& b) { return a.key > b.key; });
  for (int64_t i = 0; i < keep; ++i) r.bits[all[i].tensor][all[i].index / 8] |= static_cast<uint8_t>(1u << all[i].index % 8);
  return r;
}

void check(const Model& model, int64_t keep, TopkPath path) {
  const Result want = sorted(model, keep);
  for (int order : kOrders) {
    setenv("ACDC_EMULATOR_ORDER", std::to_string(order).c_str(), 1);
    const Result got = run(model, keep, false);
    CHECK(got == want);
    CHECK(got.path == path);
  }
  const Result radix = run(model, keep, true);
  CHECK(radix == want);
  CHECK(radix.path == TopkPath::radix);
}

std::vector<float> bell(int64_t n, double scale, uint64_t seed) {
  Random random{seed};
  std::vector<float> w(static_cast<size_t>(n));
  for (float& x : w) x = static_cast<float>(random.bell() * scale);
  return w;
}

// Candidates of more than one number of 2^kLowBits items, of several tensors.
void brackets_hold() {
  Model model{bell(200000, 1, 1), bell(7, 1, 2), {}, bell(150001, 0.2, 3), bell(1, 1, 4)};
  const int64_t total = 350009;
  for (int64_t keep : {int64_t{1}, int64_t{5}, total / 50, total / 10, total / 2, total - total / 100, total - 1}) check(model, keep, TopkPath::bracket);
  for (int64_t keep : {int64_t{0}, total}) check(model, keep, TopkPath::radix);
  const Model faint{bell(90000, 0.02, 7), bell(100, 1e-30, 8)};
  for (int64_t keep : {1, 30, 500, 90099}) check(faint, keep, TopkPath::bracket);
  // NaNs are counted by the pass that looks for candidates, and order highest.
  model[0][17] = kNan, model[3][150000] = -kNan, model[4][0] = kNan;
  model[0][99999] = -kInf;
  for (int64_t keep : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{4}, int64_t{5}, total / 10}) check(model, keep, TopkPath::bracket);
  // Ties within the bracket, fewer than its list holds.
  for (int64_t i = 0; i < 900; ++i) model[i % 2 * 3][static_cast<size_t>(i * 97 % 150000)] = i % 3 ? 1.25f : -1.25f;
  int64_t above = 0;
  for (const auto& w : model)
    for (float x : w) above += !(std::abs(x) <= 1.25f);
  for (int64_t more : {0, 1, 450, 899, 900}) check(model, above + more, TopkPath::bracket);
}

void brackets_miss() {
  const int64_t n = 100000, keep = 10000;
  // More candidates of one key than the list holds.
  Model model{bell(n, 1, 11)};
  for (int64_t i = 0; i < 3000; ++i) model[0][static_cast<size_t>(i * 31 % n)] = 1.625f;
  int64_t above = 0;
  for (float x : model[0]) above += std::abs(x) > 1.625f;
  check(model, above + 1500, TopkPath::bracket_missed);
  // More candidates than there is room for.
  for (size_t i = 0; i < model[0].size(); ++i) model[0][i] = i % 5 == 0 ? 2.0f : i % 2 ? -0.5f : 0.5f;
  check(model, n / 5 + 7, TopkPath::bracket_missed);
  check(model, n - 1, TopkPath::bracket_missed);
  check({std::vector<float>(static_cast<size_t>(n), 0.0f)}, keep, TopkPath::bracket_missed);
  // NaNs tie as well.
  for (size_t i = 0; i < model[0].size(); ++i) model[0][i] = i % 3 ? kNan : -kNan;
  check(model, keep, TopkPath::bracket_missed);
  // Weights that are small where the sample looks, and large elsewhere: nothing in the bracket. And the other way round.
  for (double there : {0.001, 1000.0}) {
    model[0] = bell(n, 1, 12);
    const int64_t runs = sample_size(n) / kRun;
    for (int64_t run = 0; run < runs; ++run) {
      const double jitter = static_cast<double>(static_cast<uint32_t>(run) * 2654435761u) * 0x1p-32;
      const auto at = static_cast<int64_t>((static_cast<double>(run) + jitter) * (static_cast<double>(n) / static_cast<double>(runs)));
      for (int64_t i = 0; i < kRun; ++i)
        if (float& x = model[0][static_cast<size_t>(std::min(at & ~(kRun - 1), n - kRun) + i)]; std::abs(x) < 20) x *= static_cast<float>(there);
    }
    check(model, keep, TopkPath::bracket_missed);
  }
}

void radix_selects() {
  const Model small{bell(1000, 1, 5), bell(63, 3, 6), {kNan}, {-0.0f, 0.0f}};
  for (int64_t keep : {1, 100, 1063, 1064, 1065, 1066}) check(small, keep, TopkPath::radix);
  Model ties;  // tiles and warps of which some give all, some part and some none of their ties
  for (int64_t n : {1023, 1024, 1025, 20000, 1, 31, 9000}) ties.emplace_back(static_cast<size_t>(n), 0.5f);
  for (size_t i = 0; i < ties[3].size(); i += 2) ties[3][i] = i % 4 ? 0.25f : 2.0f;
  for (int64_t keep : {5000, 5001, 6023, 7000, 8073, 12345, 18073, 18100, 26103, 27104}) check(ties, keep, TopkPath::radix);
}

void scratch_is_within_bounds() {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    for (int64_t numel = 1; numel < int64_t{1} << 40; numel *= 3) {
      DeviceWeight weight{};
      weight.layout.numel = numel;
      CHECK(topk_cuda_scratch_bytes({dtype, &weight, 1, nullptr, 0}) <= numel * element_bytes(dtype) / 1000 * 23 + 400 * 1024);
    }
}

}  // namespace

int main() {
  brackets_hold();
  brackets_miss();
  radix_selects();
  scratch_is_within_bounds();
  std::puts("test_topk_cuda passed");
}
