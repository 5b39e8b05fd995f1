// The structured patterns' CUDA kernels against those of CPUs: dtypes, strides, large blocks whose sums are exact in any order and such that
// are not, scores that are stored and such that are not, orders of threads and blocks, memory.
#include <cmath>
#include <memory>
#include <string>

#include "tests/testing.h"
#include "topk/block.cu"

using namespace acdc;
using namespace acdc::testing;

namespace {

constexpr int kOrders[] = {0, 1, 7, 8};  // 8: one warp runs ahead of the others
constexpr uint8_t kPoison = 0xa5;
constexpr DType kTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16};

// Weights as a bell, some far smaller; or any bits at all, NaN and Inf among them.
enum class Values { bell, small_ones, any_bits };
enum class Lies { plainly, unaligned, kernel_first };

uint64_t draw(DType dtype, Values values, Random& random) {
  if (values == Values::any_bits) return random.next();
  const double x = random.bell() * (values == Values::small_ones && random.unit() < 0.004 ? 0x1p-32 : 0.05);
  const float f = static_cast<float>(x);
  uint64_t wide;
  uint32_t bits;
  std::memcpy(&wide, &x, 8);
  std::memcpy(&bits, &f, 4);
  if (dtype == DType::f64) return wide;
  if (dtype == DType::f32) return bits;
  if (dtype == DType::bf16) return bits >> 16;
  const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
  const uint32_t rest = bits >> 13 & 0x3ff, sign = bits >> 16 & 0x8000;
  return exponent > 0 ? sign | static_cast<uint32_t>(exponent) << 10 | rest : exponent > -10 ? sign | (0x400 | rest) >> (1 - exponent) : sign;
}

struct Weight {
  std::vector<int64_t> sizes, strides;
  std::vector<Bytes16> data;
  TensorRef ref;
  Weight(DType dtype, int64_t o, int64_t i, int64_t k, Values values, Lies lies, uint64_t seed)
      : sizes{o, i, k}, strides{i * k, k, 1}, data(static_cast<size_t>(o * i * k / 2 + 2)) {
    if (lies == Lies::kernel_first) strides = {i, 1, o * i};
    const int64_t size = element_bytes(dtype);
    char* first = reinterpret_cast<char*>(data.data()) + (lies == Lies::unaligned ? size : 0);
    Random random{seed};
    for (int64_t at = 0; at < o * i * k; ++at) {
      const uint64_t u = draw(dtype, values, random);
      std::memcpy(first + at * size, &u, static_cast<size_t>(size));
    }
    ref = {first, o * i * k, sizes.data(), strides.data(), 3, lies != Lies::kernel_first};
  }
  Weight(const Weight&) = delete;
};
using Weights = std::vector<std::unique_ptr<Weight>>;

struct Pattern {
  enum { n_m, transposable, block } kind;
  int64_t first, second;
};

struct Result {
  std::vector<std::vector<uint8_t>> bits;
  std::vector<int64_t> nan;
  bool operator==(const Result& o) const { return bits == o.bits && nan == o.nan; }
};

Result empty_result(const Weights& weights, std::vector<uint8_t*>* out, std::vector<TensorRef>* refs) {
  Result r;
  r.nan.assign(weights.size(), -1);
  for (auto& w : weights) {
    r.bits.emplace_back(static_cast<size_t>(w->ref.numel + 31) / 32 * 4 + 4, kPoison);
    refs->push_back(w->ref);
  }
  for (auto& b : r.bits) out->push_back(b.data());
  return r;
}

// Only a mask's own bytes, behind which nothing but the rest of a word may have changed.
Result trimmed(Result r, const Weights& weights) {
  for (size_t t = 0; t < weights.size(); ++t) {
    for (size_t i = r.bits[t].size() - 4; i < r.bits[t].size(); ++i) CHECK(r.bits[t][i] == kPoison);
    r.bits[t].resize(static_cast<size_t>(weights[t]->ref.numel + 7) / 8);
  }
  return r;
}

Result on_cpu(DType dtype, const Weights& weights, Pattern p, int64_t keep) {
  std::vector<uint8_t*> out;
  std::vector<TensorRef> refs;
  Result r = empty_result(weights, &out, &refs);
  const PatternProblem problem{dtype, refs.data(), out.data(), r.nan.data(), static_cast<int>(refs.size())};
  if (p.kind == Pattern::n_m) n_m_mask_cpu(problem, p.first, p.second, pool(1));
  if (p.kind == Pattern::transposable) transposable_mask_cpu(problem, pool(1));
  if (p.kind == Pattern::block) {
    int64_t numel = 0;
    for (const TensorRef& t : refs) numel += t.numel;
    const int64_t bytes = block_scratch_bytes(dtype, numel, {p.first, p.second}, 1);
    std::vector<Bytes16> scratch(static_cast<size_t>(bytes / 16 + 5));
    void* aligned = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    block_mask_cpu(problem, {p.first, p.second}, keep, aligned, bytes, pool(1));
  }
  return trimmed(std::move(r), weights);
}

Result on_gpu(DType dtype, const Weights& weights, Pattern p, int64_t keep, bool force_radix) {
  std::vector<uint8_t*> out;
  std::vector<TensorRef> refs;
  Result r = empty_result(weights, &out, &refs);
  std::vector<PatternWeight> table(refs.size());
  for (size_t t = 0; t < refs.size(); ++t) CHECK(make_pattern_weight(refs[t], out[t], &table[t]));
  const PatternCudaProblem problem{dtype, table.data(), static_cast<int64_t>(table.size()), r.nan.data()};
  const int64_t bytes = p.kind == Pattern::block ? block_cuda_scratch_bytes(problem, {p.first, p.second}) : pattern_cuda_scratch_bytes(problem);
  std::vector<Bytes16> scratch(static_cast<size_t>(bytes / 16 + 2), Bytes16{{0xa5a5a5a5u, 0xa5a5a5a5u, 0xa5a5a5a5u, 0xa5a5a5a5u}});
  cudaError_t error = cudaSuccess;
  if (p.kind == Pattern::n_m) error = n_m_mask_cuda(problem, p.first, p.second, scratch.data(), nullptr);
  if (p.kind == Pattern::transposable) error = transposable_mask_cuda(problem, scratch.data(), nullptr);
  if (p.kind == Pattern::block) error = block_mask_cuda(problem, {p.first, p.second}, keep, scratch.data(), force_radix, nullptr);
  CHECK(error == cudaSuccess);
  for (size_t i = static_cast<size_t>(bytes + 15) / 16; i < scratch.size(); ++i) CHECK(scratch[i].word[3] == 0xa5a5a5a5u);
  return trimmed(std::move(r), weights);
}

void check(DType dtype, const Weights& weights, Pattern p, int64_t keep = 0, bool every_order = true) {
  const Result want = on_cpu(dtype, weights, p, keep);
  for (int order : kOrders) {
    if ((!every_order || ACDC_EMULATED_THREADS > 64) && order != 8) continue;
    setenv("ACDC_EMULATOR_ORDER", std::to_string(order).c_str(), 1);
    CHECK(on_gpu(dtype, weights, p, keep, false) == want);
  }
  if (p.kind == Pattern::block) CHECK(on_gpu(dtype, weights, p, keep, true) == want);
}

void groups_and_tiles() {
  uint64_t seed = 1;
  for (DType dtype : kTypes)
    for (Values values : {Values::bell, Values::any_bits})
      for (Lies lies : {Lies::plainly, Lies::unaligned, Lies::kernel_first}) {
        for (auto [n, m] : {std::pair{1, 2}, {2, 4}, {3, 8}, {7, 12}}) {
          Weights weights;  // tiles that end within a word, a byte, at a tile's end; small ones
          for (auto [o, in, k] : {std::tuple{3, m * 14, 3}, {1, m, 1}, {37, m * 5, 1}, {16, 16 * m, 1}, {64, 8 * m, 1}})
            weights.push_back(std::make_unique<Weight>(dtype, o, in, k, values, lies, ++seed));
          check(dtype, weights, {Pattern::n_m, n, m}, 0, dtype == DType::f32);
        }
        Weights weights;  // steps that end within a word; kernels larger than a step
        for (auto [o, in, k] : {std::tuple{4, 520, 1}, {8, 4, 1}, {4, 264, 3}, {4, 8, 70}, {4, 4, 129}, {4, 512, 1}, {4, 12, 8}})
          weights.push_back(std::make_unique<Weight>(dtype, o, in, k, values, lies, ++seed));
        check(dtype, weights, {Pattern::transposable, 4, 4}, 0, dtype == DType::f32);
      }
}

void blocks_of_all_sizes() {
  uint64_t seed = 100;
  for (DType dtype : kTypes)
    for (auto [rows, columns] : {std::pair{2, 1}, {1, 2}, {4, 4}, {8, 8}, {3, 40}, {32, 32}, {64, 64}, {5, 300}, {96, 24}})
      for (Values values : {Values::bell, Values::small_ones, Values::any_bits})
        for (Lies lies : {Lies::plainly, Lies::unaligned, Lies::kernel_first}) {
          if (lies != Lies::plainly && values != Values::any_bits) continue;
          Weights weights;
          int64_t blocks = 0;
          const int k = rows * columns < 50 ? 5 : 1;
          for (auto [down, across, kernel] : {std::tuple{3, 2, k}, {1, 1, 1}, {rows < 5 ? 70 : 2, 3, 1}}) {
            weights.push_back(std::make_unique<Weight>(dtype, down * rows, across * columns, kernel, values, lies, ++seed));
            blocks += down * across * kernel;
          }
          for (int64_t keep : {int64_t{1}, blocks / 3, blocks})
            check(dtype, weights, {Pattern::block, rows, columns}, keep, keep == blocks / 3 && lies == Lies::plainly && values == Values::any_bits);
        }
}

void scores_are_not_stored() {
  uint64_t seed = 1000;
  for (DType dtype : {DType::f32, DType::bf16})
    for (auto [rows, columns] : {std::pair{2, 1}, {1, 2}, {1, 8}}) {
      Weights weights;
      int64_t blocks = 0;
      for (auto [down, across, kernel] : {std::tuple{130, 500, 1}, {35, 7, 9}, {1, 3000, 1}}) {
        weights.push_back(std::make_unique<Weight>(dtype, down * rows, across * columns, kernel, Values::bell, Lies::plainly, ++seed));
        blocks += down * across * kernel;
      }
      CHECK(blocks >= kBracketFrom);
      check(dtype, weights, {Pattern::block, rows, columns}, blocks / 10, false);
    }
}

// Scores to the last bit: masks hardly ever depend on it. Counts in `differ` the blocks whose sum from their end is another.
template <class U>
void check_scores(DType dtype, int rows, int columns, Values values, Lies lies, int64_t* differ) {
  const Weight w(dtype, 3 * rows, 2 * columns, 1, values, lies, static_cast<uint64_t>(rows * columns));
  PatternWeight weight;
  CHECK(make_pattern_weight(w.ref, nullptr, &weight));
  const Strides at{weight.inputs, 1, weight.output_stride, weight.input_stride, 1, -1, w.ref.contiguous, w.ref.contiguous && is_aligned16(w.ref.data)};
  const BlockEntry entry{nullptr, 6, 0, 0, nullptr, w.ref.data, 0, at};
  const Scores<U> source{&entry, 1, nullptr, rows, columns, static_cast<double>(rows * columns), 0, dtype == DType::bf16};
  uint64_t scores[6];
  auto kernel = score<U>;
  CHECK(ACDC_LAUNCH(kernel, 2, kBlockThreads, nullptr, source, scores, int64_t{6}) == cudaSuccess);
  for (int64_t i = 0; i < 6; ++i) {
    const U* first = static_cast<const U*>(w.ref.data) + i / 2 * rows * at.output + i % 2 * columns * at.input;
    auto summand = [&](int q) { return magnitude_of(first[q / columns * at.output + q % columns * at.input], source.bf16); };
    double sum = 0, backwards = 0;
    for (int q = 0; q < rows * columns; ++q) sum += summand(q), backwards += summand(rows * columns - 1 - q);
    if (std::isnan(sum)) {
      CHECK(scores[i] > 0x7ff0000000000000ull);
    } else {
      *differ += sum != backwards;
      CHECK(scores[i] == source.key(sum));
    }
  }
}

void scores_to_the_last_bit() {
  for (DType dtype : kTypes)
    for (Values values : {Values::bell, Values::small_ones, Values::any_bits}) {
      int64_t differ = 0;
      for (auto [rows, columns] : {std::pair{8, 8}, {7, 9}, {64, 64}, {96, 24}, {5, 300}, {33, 32}, {128, 128}})
        for (Lies lies : {Lies::plainly, Lies::unaligned, Lies::kernel_first}) {
          switch (element_bytes(dtype)) {
            case 8: check_scores<uint64_t>(dtype, rows, columns, values, lies, &differ); break;
            case 4: check_scores<uint32_t>(dtype, rows, columns, values, lies, &differ); break;
            default: check_scores<uint16_t>(dtype, rows, columns, values, lies, &differ);
          }
        }
      if (values == Values::small_ones && element_bytes(dtype) > 2) CHECK(differ > 0);
    }
}

void scratch_is_within_bounds() {
  for (DType dtype : kTypes)
    for (auto [rows, columns] : {std::pair{1, 2}, {2, 1}, {1, 3}, {4, 1}, {4, 4}, {8, 8}, {14, 14}, {16, 16}, {128, 128}})
      for (int64_t side = 128; side <= 65536; side *= 2)
        for (int64_t tensors : {1, 7}) {
          std::vector<PatternWeight> weights;
          const int64_t o = side * rows, in = 128 * columns;
          for (int64_t t = 0; t < tensors; ++t) weights.push_back({nullptr, nullptr, o * in, in, 1, in, 1, {}, true});
          const int64_t bytes = o * in * tensors * element_bytes(dtype);
          CHECK(block_cuda_scratch_bytes({dtype, weights.data(), tensors, nullptr}, {rows, columns}) <= bytes / 1000 * 28 + 720 * 1024 + 300 * tensors);
        }
}

}  // namespace

int main() {
  groups_and_tiles();
  blocks_of_all_sizes();
  scores_are_not_stored();
  scores_to_the_last_bit();
  scratch_is_within_bounds();
  std::puts("test_topk_patterns_cuda passed");
}
