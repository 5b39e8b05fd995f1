// The structured patterns against plain loops; thread counts, strides, dtypes' widths; scratch and paths of blocks.
#include "topk/patterns.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>

#include "tests/testing.h"

using namespace acdc;
using namespace acdc::testing;

namespace {

// [outputs, inputs, kernel], contiguous or with the kernel outermost in memory.
struct Weight {
  std::vector<int64_t> sizes, strides;
  std::vector<float> data, logical;
  TensorRef ref;
  Weight(int64_t o, int64_t i, int64_t k, bool turned, const std::function<float(int64_t)>& value)
      : sizes{o, i, k}, strides{i * k, k, 1}, data(static_cast<size_t>(o * i * k)), logical(data.size()) {
    if (turned) strides = {i, 1, o * i};
    for (int64_t at = 0; at < o * i * k; ++at) {
      logical[at] = value(at);
      data[at / k / i * strides[0] + at / k % i * strides[1] + at % k * strides[2]] = logical[at];
    }
    ref = {data.data(), o * i * k, sizes.data(), strides.data(), 3, !turned};
  }
  Weight(const Weight&) = delete;
  double at(int64_t o, int64_t i, int64_t k) const { return logical[(o * sizes[1] + i) * sizes[2] + k]; }
};
using Weights = std::vector<std::unique_ptr<Weight>>;
using Masks = std::vector<std::vector<bool>>;

// Larger first, NaN above all.
bool beats(double a, double b) { return std::isnan(a) ? !std::isnan(b) : a > b; }

struct Result {
  Masks kept;
  std::vector<int64_t> nan;
};

Result run(const Weights& weights, int threads, const std::function<void(const PatternProblem&, const Pool&)>& call) {
  std::vector<TensorRef> refs;
  std::vector<std::vector<uint8_t>> bits;
  std::vector<uint8_t*> out;
  Result r;
  r.nan.assign(weights.size(), -1);
  for (auto& w : weights) {
    refs.push_back(w->ref);
    bits.emplace_back((w->data.size() + 7) / 8, uint8_t{0xa5});  // poisoned: every byte must be written
  }
  for (auto& b : bits) out.push_back(b.data());
  call({DType::f32, refs.data(), out.data(), r.nan.data(), static_cast<int>(refs.size())}, pool(threads));
  for (size_t t = 0; t < weights.size(); ++t) {
    const size_t n = weights[t]->data.size();
    r.kept.emplace_back(n);
    for (size_t i = 0; i < n; ++i) r.kept[t][i] = bits[t][i >> 3] >> (i & 7) & 1;
    for (size_t i = n; i < bits[t].size() * 8; ++i) CHECK(!(bits[t][i >> 3] >> (i & 7) & 1));
  }
  return r;
}

void check(const Weights& weights, const Masks& want, const std::function<void(const PatternProblem&, const Pool&)>& call) {
  std::vector<int64_t> nan;
  for (auto& w : weights) nan.push_back(std::count_if(w->data.begin(), w->data.end(), [](float x) { return std::isnan(x); }));
  for (int threads : {1, 2, 5}) {
    const Result r = run(weights, threads, call);
    CHECK(r.kept == want);
    CHECK(r.nan == nan);
  }
}

void check_n_m(const Weights& weights, int64_t n, int64_t m) {
  Masks want;
  for (auto& w : weights) {
    want.emplace_back(w->data.size());
    for (int64_t o = 0; o < w->sizes[0]; ++o)
      for (int64_t i = 0; i < w->sizes[1]; ++i)
        for (int64_t k = 0; k < w->sizes[2]; ++k) {
          int64_t ahead = 0;
          for (int64_t j = i / m * m; j < i / m * m + m; ++j) {
            const double mine = std::fabs(w->at(o, i, k)), other = std::fabs(w->at(o, j, k));
            ahead += beats(other, mine) || (j < i && !beats(mine, other));
          }
          want.back()[(o * w->sizes[1] + i) * w->sizes[2] + k] = ahead < n;
        }
  }
  check(weights, want, [&](const PatternProblem& p, const Pool& pool) { n_m_mask_cpu(p, n, m, pool); });
}

void check_transposable(const Weights& weights) {
  constexpr int pairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
  Masks want;
  for (auto& w : weights) {
    want.emplace_back(w->data.size());
    for (int64_t o = 0; o < w->sizes[0]; o += 4)
      for (int64_t i = 0; i < w->sizes[1]; i += 4)
        for (int64_t k = 0; k < w->sizes[2]; ++k) {
          double best = -1;
          int chosen = -1;
          for (int mask = 0; mask < 1296; ++mask) {
            const int row[4] = {mask / 216, mask / 36 % 6, mask / 6 % 6, mask % 6};
            int columns[4] = {};
            double sum = 0;
            for (int r = 0; r < 4; ++r) {
              const int a = pairs[row[r]][0], b = pairs[row[r]][1];
              ++columns[a], ++columns[b];
              sum += std::fabs(w->at(o + r, i + a, k)) + std::fabs(w->at(o + r, i + b, k));
            }
            if (std::count(columns, columns + 4, 2) == 4 && beats(sum, best)) best = sum, chosen = mask;
          }
          const int row[4] = {chosen / 216, chosen / 36 % 6, chosen / 6 % 6, chosen % 6};
          for (int r = 0; r < 4; ++r)
            for (int c : pairs[row[r]]) want.back()[((o + r) * w->sizes[1] + i + c) * w->sizes[2] + k] = true;
        }
  }
  check(weights, want, [](const PatternProblem& p, const Pool& pool) { transposable_mask_cpu(p, pool); });
}

void check_blocks(const Weights& weights, BlockShape block, int64_t keep, TopkPath path) {
  struct Entry {
    double score;
    size_t tensor;
    int64_t o, i, k;
  };
  std::vector<Entry> all;
  Masks want;
  int64_t numel = 0;
  for (size_t t = 0; t < weights.size(); ++t) {
    const Weight& w = *weights[t];
    numel += w.ref.numel;
    want.emplace_back(w.data.size());
    for (int64_t o = 0; o < w.sizes[0]; o += block.rows)
      for (int64_t i = 0; i < w.sizes[1]; i += block.columns)
        for (int64_t k = 0; k < w.sizes[2]; ++k) {
          double sum = 0;
          for (int64_t r = 0; r < block.rows; ++r)
            for (int64_t c = 0; c < block.columns; ++c) sum += std::fabs(w.at(o + r, i + c, k));
          all.push_back({sum / static_cast<double>(block.rows * block.columns), t, o, i, k});
        }
  }
  std::stable_sort(all.begin(), all.end(), [](const Entry& a, const Entry& b) { return beats(a.score, b.score); });
  for (int64_t b = 0; b < keep; ++b)
    for (int64_t r = 0; r < block.rows; ++r)
      for (int64_t c = 0; c < block.columns; ++c) {
        const Entry& e = all[b];
        want[e.tensor][((e.o + r) * weights[e.tensor]->sizes[1] + e.i + c) * weights[e.tensor]->sizes[2] + e.k] = true;
      }
  check(weights, want, [&](const PatternProblem& p, const Pool& pool) {
    const int64_t bytes = block_scratch_bytes(DType::f32, numel, block, pool.threads);
    void* scratch = std::aligned_alloc(64, static_cast<size_t>(bytes + 63) / 64 * 64);
    CHECK(block_mask_cpu(p, block, keep, scratch, bytes, pool) == path);
    std::free(scratch);
  });
}

}  // namespace

int main(int argc, char** argv) {
  skip_unless_available(argc, argv);
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    for (int threads : {1, 2, 16, 64, 256})
      for (BlockShape block : {BlockShape{1, 1}, {1, 2}, {4, 1}, {4, 4}, {8, 8}, {16, 16}, {32, 32}})
        for (int64_t blocks = 1; blocks < int64_t{1} << 36; blocks = blocks * 3 + 1) {
          const int64_t numel = blocks * block.rows * block.columns;
          CHECK(block_scratch_bytes(dtype, numel, block, threads) <= numel * element_bytes(dtype) / 40 + 900 * 1024);
        }

  Random random{11};
  auto bell = [&](int64_t) { return static_cast<float>(random.bell()); };
  auto ties = [&](int64_t) { return static_cast<float>(std::round(random.bell() * 2)); };
  auto wild = [&](int64_t i) {
    const float x = ties(i);
    return i % 7 == 3 ? std::numeric_limits<float>::quiet_NaN() : i % 11 == 3 ? -std::numeric_limits<float>::infinity() : x;
  };
  for (const std::function<float(int64_t)>& value : {std::function<float(int64_t)>(bell), {ties}, {wild}})
    for (bool turned : {false, true}) {
      for (auto [n, m] : {std::pair<int64_t, int64_t>{2, 4}, {1, 4}, {3, 4}, {1, 2}, {2, 8}, {4, 8}, {7, 8}, {2, 5}, {9, 600}}) {
        Weights weights;
        for (auto [o, i, k] : {std::tuple{3, 1, 1}, {1, 3, 1}, {5, 2, 9}, {0, 1, 1}, {2, 1, 65}, {40, 60, 1}})
          weights.push_back(std::make_unique<Weight>(o, m > 100 ? m : i * m, k, turned, value));
        check_n_m(weights, n, m);
      }
      Weights tiles;
      for (auto [o, i, k] : {std::tuple{4, 4, 1}, {8, 4, 9}, {0, 4, 1}, {4, 8, 131}, {12, 44, 1}, {36, 8, 3}})
        tiles.push_back(std::make_unique<Weight>(o, i, k, turned, value));
      check_transposable(tiles);
      for (BlockShape block : {BlockShape{1, 1}, {1, 2}, {4, 1}, {2, 3}, {4, 4}, {1, 8}, {3, 40}, {1, 5000}}) {
        Weights weights;
        int64_t blocks = 0;
        for (auto [o, i, k] : {std::tuple{1, 1, 1}, {3, 1, 1}, {2, 3, 9}, {0, 1, 1}, {1, 1, 65}, {5, 7, 1}}) {
          if (block.columns > 100 && o * i * k > 10) continue;  // wider than what a stack buffer holds
          weights.push_back(std::make_unique<Weight>(o * block.rows, i * block.columns, k, turned, value));
          blocks += o * i * k;
        }
        for (int64_t keep : {int64_t{0}, int64_t{1}, blocks / 3, blocks - 1, blocks})
          check_blocks(weights, block, keep, TopkPath::radix);
      }
    }

  // So many blocks that their scores are not stored, and the bracket's miss where all of them tie.
  for (bool turned : {false, true}) {
    Weights many;
    many.push_back(std::make_unique<Weight>(640, 500, 1, turned, bell));
    many.push_back(std::make_unique<Weight>(4, 2, 1, turned, bell));
    many.push_back(std::make_unique<Weight>(64, 100, 9, turned, bell));
    for (int64_t keep : {1, 9000, 60000}) check_blocks(many, {4, 1}, keep, TopkPath::bracket);
    for (int64_t keep : {1, 18000}) check_blocks(many, {1, 2}, keep, TopkPath::bracket);
    many[0] = std::make_unique<Weight>(640, 500, 1, turned, [](int64_t) { return -0.25f; });
    check_blocks(many, {4, 1}, 40000, TopkPath::bracket_missed);
  }
  std::puts("test_topk_patterns passed");
}
