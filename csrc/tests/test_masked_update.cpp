// masked_sgd: bits independent of threads and of where chunks end; masked positions exactly +0.0; strided tensors.
#include "masked_update/masked_update.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/testing.h"

using namespace acdc;
using namespace acdc::testing;

namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();

struct Data {
  std::vector<float> param, grad, momentum;
  std::vector<uint8_t> bits;
  explicit Data(int64_t n) : param(n), grad(n), momentum(n), bits((n + 7) / 8) {
    Random random{static_cast<uint64_t>(n) + 77};
    for (int64_t i = 0; i < n; ++i) {
      param[i] = static_cast<float>(random.bell());
      grad[i] = i % 11 == 3 ? kNan : static_cast<float>(random.bell());
      momentum[i] = static_cast<float>(random.bell());
      if (i % 11 != 3 && random.unit() < 0.4) bits[i >> 3] |= static_cast<uint8_t>(1u << (i & 7));
    }
  }
  bool kept(int64_t i) const { return bits[i >> 3] >> (i & 7) & 1; }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
}

}  // namespace

int main(int argc, char** argv) {
  skip_unless_available(argc, argv);
  const SgdHyper hyper{0.1, 0.9, 0.0, 1e-3, true, false, false, 1.0};
  for (int64_t n : {0, 1, 7, 8, 63, 1000, 70001}) {
    Data one(n);
    for (int threads : {1, 3}) {
      Data d(n);
      Vector p(d.param), g(d.grad), b(d.momentum);
      UpdateTensor tensor{p.ref, g.ref, {b.ref}, d.bits.data(), DType::f32, DType::f32};
      masked_sgd_cpu(&tensor, 1, hyper, pool(threads));
      for (int64_t i = 0; i < n; ++i)
        if (!d.kept(i)) CHECK(d.param[i] == 0 && !std::signbit(d.param[i]) && d.momentum[i] == 0 && !std::signbit(d.momentum[i]));
        else {
          double grad = one.grad[i] + 1e-3 * one.param[i], buffer = 0.9 * one.momentum[i] + grad;
          CHECK(std::abs(d.momentum[i] - buffer) <= 1e-5 * (1 + std::abs(buffer)));
          CHECK(std::abs(d.param[i] - (one.param[i] - 0.1 * (grad + 0.9 * buffer))) <= 1e-5);
        }
      // Every other element of twice as long a row: the same numbers, and nothing between them changes.
      std::vector<float> wide(2 * n, 42.0f), wide_momentum(2 * n, 42.0f);
      for (int64_t i = 0; i < n; ++i) {
        wide[2 * i] = one.param[i];
        wide_momentum[2 * i] = one.momentum[i];
      }
      int64_t size[1] = {n}, stride[1] = {2};
      Vector grad(one.grad);
      UpdateTensor strided{{wide.data(), n, size, stride, 1, false}, grad.ref, {{wide_momentum.data(), n, size, stride, 1, false}},
                           one.bits.data(), DType::f32, DType::f32};
      masked_sgd_cpu(&strided, 1, hyper, pool(threads));
      std::vector<float> got, got_momentum;
      for (int64_t i = 0; i < n; ++i) {
        CHECK(wide[2 * i + 1] == 42.0f && wide_momentum[2 * i + 1] == 42.0f);
        got.push_back(wide[2 * i]);
        got_momentum.push_back(wide_momentum[2 * i]);
      }
      CHECK(same_bits(got, d.param) && same_bits(got_momentum, d.momentum));
    }
  }
  // Every pair of types, with and without momentum and mask: the loops stay inside their rows (sanitizers watch).
  const DType pairs[6][2] = {{DType::f32, DType::f32}, {DType::f64, DType::f64}, {DType::bf16, DType::bf16},
                             {DType::f16, DType::f16}, {DType::bf16, DType::f32}, {DType::f16, DType::f32}};
  for (const auto& [dtype, state] : pairs)
    for (bool momentum : {false, true})
      for (bool masked : {false, true})
        for (int64_t n : {1, 8, 77, 1000}) {
          std::vector<char> param(n * element_bytes(dtype)), grad(param), buffer(n * element_bytes(state));
          std::vector<uint8_t> bits((n + 7) / 8, 0);
          int64_t size[1] = {n}, stride[1] = {1};
          auto ref = [&](std::vector<char>& v) { return TensorRef{v.data(), n, size, stride, 1, true}; };
          std::fill(param.begin(), param.end(), char{0x3c});
          UpdateTensor tensor{ref(param), ref(grad), {momentum ? ref(buffer) : TensorRef{}}, masked ? bits.data() : nullptr, dtype,
                              momentum ? state : dtype};
          masked_sgd_cpu(&tensor, 1, {0.1, momentum ? 0.9 : 0.0, 0.0, 0.0, false, false, false, 1.0}, pool(2));
          for (char byte : param) CHECK(byte == (masked ? 0 : 0x3c));
        }
  // Gradients are divided by their scale before anything else.
  for (double scale : {1.0, 8.0}) {
    std::vector<float> param(20, 1.0f), grad(20, static_cast<float>(0.5 * scale)), momentum(20, 2.0f);
    Vector p(param), g(grad), b(momentum);
    UpdateTensor tensor{p.ref, g.ref, {b.ref}, nullptr, DType::f32, DType::f32};
    masked_sgd_cpu(&tensor, 1, {0.5, 0.5, 0.0, 1.0, false, false, false, scale}, pool(1));
    for (int i = 0; i < 20; ++i) CHECK(momentum[i] == 2.5f && param[i] == -0.25f && grad[i] == static_cast<float>(0.5 * scale));
  }
  std::puts("test_masked_update passed");
}
