// How the structured patterns see a weight, and how they cut it up for threads.
#pragma once
#include <cstddef>
#include <vector>

#include "topk/key_rule.h"
#include "topk/pattern_kernels.h"
#include "topk/patterns.h"

namespace acdc {

// A weight as [outputs, inputs, kernel] in logical row-major order.
struct Axes {
  int64_t outputs, inputs, kernel;
  explicit Axes(const TensorRef& t) : outputs(t.sizes[0]), inputs(t.sizes[1]), kernel(1) {
    for (int d = 2; d < t.dims; ++d) kernel *= t.sizes[d];
  }
};

struct Piece {
  int64_t begin, count;  // elements; begin is a multiple of 8, so that the bits start a byte
  int tensor;
};

// Pieces of about 16384 elements, each but a tensor's last a multiple of unit(t), which is a multiple of 8.
template <class Unit>
std::vector<Piece> make_pieces(const PatternProblem& problem, const Unit& unit) {
  constexpr int64_t kPiece = 16384;
  std::vector<Piece> pieces;
  for (int t = 0; t < problem.tensors; ++t) {
    const int64_t numel = problem.weights[t].numel;
    if (numel == 0) continue;
    const int64_t u = unit(t), size = u < kPiece ? kPiece / u * u : u;
    pieces.reserve(pieces.size() + static_cast<std::size_t>((numel + size - 1) / size));
    for (int64_t begin = 0; begin < numel; begin += size) pieces.push_back({begin, numel - begin < size ? numel - begin : size, t});
  }
  return pieces;
}

inline int64_t total_numel(const PatternProblem& problem) {
  int64_t numel = 0;
  for (int t = 0; t < problem.tensors; ++t) numel += problem.weights[t].numel;
  return numel;
}

// f(elements, count, position) over [begin, begin + count) of a tensor in logical order; a strided one in blocks gathered on the stack
// of at most `block` elements, block <= kMaxRun.
template <class U, class F>
void in_order(const TensorRef& t, int64_t begin, int64_t count, int64_t block, const F& f) {
  if (t.contiguous) {
    f(static_cast<const U*>(t.data) + begin, count, int64_t{0});
    return;
  }
  U gathered[kMaxRun];
  for (int64_t at = 0; at < count; at += block) {
    const int64_t n = count - at < block ? count - at : block;
    gather(t, begin + at, n, gathered);
    f(static_cast<const U*>(gathered), n, at);
  }
}

// NaNs among [begin, begin + count) of weight t, added to its count.
template <class U>
void count_nans(const PatternProblem& problem, int t, int64_t begin, int64_t count) {
  const KeyRule<U> rule = rule_for<U>(problem.dtype);
  int64_t found = 0;
  in_order<U>(problem.weights[t], begin, count, kMaxRun, [&](const U* p, int64_t n, int64_t) {
    for (int64_t i = 0; i < n; ++i) found += static_cast<U>(p[i] & rule.magnitude) >= rule.nan;
  });
  if (found) __atomic_fetch_add(&problem.nan_count[t], found, __ATOMIC_RELAXED);
}

}  // namespace acdc
