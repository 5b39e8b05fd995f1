// masked_adamw: against the formula in double; bits independent of threads, of where chunks end and of strides; steps counted.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "masked_update/masked_update.h"
#include "tests/testing.h"

using namespace acdc;
using namespace acdc::testing;

namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();

struct Data {
  std::vector<float> rows[5];  // param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq
  std::vector<uint8_t> bits;
  explicit Data(int64_t n) : bits((n + 7) / 8) {
    Random random{static_cast<uint64_t>(n) + 77};
    for (auto& row : rows) row.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      for (int k = 0; k < 5; ++k) rows[k][i] = static_cast<float>(k < 3 ? random.bell() : random.unit() + 0.1);
      if (i % 11 == 3) rows[1][i] = kNan;
      else if (random.unit() < 0.4) bits[i >> 3] |= static_cast<uint8_t>(1u << (i & 7));
    }
  }
  bool kept(int64_t i) const { return bits[i >> 3] >> (i & 7) & 1; }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
}

bool near(double got, double want) { return std::abs(got - want) <= 1e-5 * (1 + std::abs(want)); }

void check_formula(const Data& before, const Data& after, const AdamWHyper& h, double step) {
  for (size_t i = 0; i < before.rows[0].size(); ++i) {
    if (!after.kept(static_cast<int64_t>(i))) {
      for (int k : {0, 2, 3, 4}) CHECK((k == 4 && !h.amsgrad) || (after.rows[k][i] == 0 && !std::signbit(after.rows[k][i])));
      continue;
    }
    const double g = (h.maximize ? -1 : 1) * before.rows[1][i] / h.grad_scale;
    const double m = h.beta1 * before.rows[2][i] + (1 - h.beta1) * g, v = h.beta2 * before.rows[3][i] + (1 - h.beta2) * g * g;
    const double x = h.amsgrad ? std::max(static_cast<double>(before.rows[4][i]), v) : v;
    const double denominator = std::sqrt(x / (1 - std::pow(h.beta2, step))) + h.eps;
    const double p = before.rows[0][i] * (1 - h.lr * h.weight_decay) - h.lr * m / (1 - std::pow(h.beta1, step)) / denominator;
    CHECK(near(after.rows[2][i], m) && near(after.rows[3][i], v) && near(after.rows[0][i], p));
    CHECK(near(after.rows[4][i], h.amsgrad ? x : before.rows[4][i]));
  }
}

void run(Data& d, const AdamWHyper& h, float& step, int threads) {
  Vector p(d.rows[0]), g(d.rows[1]), m(d.rows[2]), v(d.rows[3]), x(d.rows[4]);
  UpdateTensor tensor{p.ref, g.ref, {m.ref, v.ref, h.amsgrad ? x.ref : TensorRef{}}, d.bits.data(), DType::f32, DType::f32};
  float* const steps[1] = {&step};
  masked_adamw_cpu(&tensor, steps, 1, h, pool(threads));
}

// Every other element of rows twice as long: the same numbers, and nothing between them changes.
void check_strided(const Data& before, const Data& want, const AdamWHyper& h, float step) {
  const int64_t n = static_cast<int64_t>(before.rows[0].size());
  int64_t size[1] = {n}, stride[1] = {2};
  std::vector<float> wide[5];
  TensorRef refs[5];
  for (int k = 0; k < 5; ++k) {
    wide[k].assign(2 * n, 42.0f);
    for (int64_t i = 0; i < n; ++i) wide[k][2 * i] = before.rows[k][i];
    refs[k] = {wide[k].data(), n, size, stride, 1, false};
  }
  UpdateTensor tensor{refs[0], refs[1], {refs[2], refs[3], h.amsgrad ? refs[4] : TensorRef{}}, before.bits.data(), DType::f32, DType::f32};
  float* const steps[1] = {&step};
  masked_adamw_cpu(&tensor, steps, 1, h, pool(2));
  for (int k : {0, 2, 3, 4}) {
    std::vector<float> got;
    for (int64_t i = 0; i < n; ++i) {
      CHECK(wide[k][2 * i + 1] == 42.0f);
      got.push_back(wide[k][2 * i]);
    }
    CHECK(same_bits(got, want.rows[k]));
  }
}

}  // namespace

int main(int argc, char** argv) {
  skip_unless_available(argc, argv);
  for (const AdamWHyper& h : {AdamWHyper{0.1, 0.9, 0.999, 1e-8, 0.01, false, false, 1.0}, AdamWHyper{0.1, 0.3, 0.8, 1e-3, 0.0, true, true, 4.0}})
    for (int64_t n : {0, 1, 7, 8, 63, 1000, 70001}) {
      Data one(n), three(n);
      const Data before(n);
      float step = 6, again = 6;
      run(one, h, step, 1);
      run(three, h, again, 3);
      CHECK(step == 7 && again == 7);
      check_formula(before, one, h, 7);
      for (int k = 0; k < 5; ++k) CHECK(k == 1 || same_bits(one.rows[k], three.rows[k]));
      check_strided(before, one, h, 6);
    }
  // A maximum with NaN on either side is NaN.
  for (int side : {3, 4}) {
    Data d(9);
    d.bits = {0xff, 1};
    std::fill(d.rows[1].begin(), d.rows[1].end(), 1.0f);
    d.rows[side][8] = d.rows[side][0] = kNan;
    float step = 0;
    run(d, {0.1, 0.9, 0.999, 1e-8, 0.0, true, false, 1.0}, step, 1);
    for (int i : {0, 8}) CHECK(std::isnan(d.rows[4][i]) && std::isnan(d.rows[0][i]) && !std::isnan(d.rows[4][1]));
  }
  // Every pair of types, with and without mask and maximum: the loops stay inside their rows (sanitizers watch), and with no gradient
  // and no decay nothing moves.
  const DType pairs[6][2] = {{DType::f32, DType::f32}, {DType::f64, DType::f64}, {DType::bf16, DType::bf16},
                             {DType::f16, DType::f16}, {DType::bf16, DType::f32}, {DType::f16, DType::f32}};
  for (const auto& [dtype, state] : pairs)
    for (bool amsgrad : {false, true})
      for (bool masked : {false, true})
        for (int64_t stride : {1, 2})
          for (int64_t n : {1, 8, 77, 5000}) {
            std::vector<char> param(n * stride * element_bytes(dtype), char{0x3c}), grad(param.size());
            std::vector<char> states[3];
            for (auto& s : states) s.resize(n * stride * element_bytes(state));
            std::vector<uint8_t> bits((n + 7) / 8, 0);
            int64_t size[1] = {n}, strides[1] = {stride};
            auto ref = [&](std::vector<char>& v) { return TensorRef{v.data(), n, size, strides, 1, stride == 1}; };
            UpdateTensor tensor{ref(param), ref(grad), {ref(states[0]), ref(states[1]), amsgrad ? ref(states[2]) : TensorRef{}},
                                masked ? bits.data() : nullptr, dtype, state};
            float step = 0;
            float* const steps[1] = {&step};
            masked_adamw_cpu(&tensor, steps, 1, {0.1, 0.9, 0.999, 1e-8, 0.0, amsgrad, false, 1.0}, pool(2));
            for (int64_t i = 0; i < n * stride * element_bytes(dtype); ++i)
              CHECK(param[i] == (masked && i / element_bytes(dtype) % stride == 0 ? 0 : 0x3c));
          }
  std::puts("test_masked_adamw passed");
}
