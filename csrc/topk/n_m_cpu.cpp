#include <algorithm>
#include <cstring>
#include <numeric>

#include "common/isa.h"
#include "topk/pattern_pieces.h"

namespace acdc {

ACDC_SELECT_ISA(PatternKernels, pattern_kernels)

namespace {

// Elements that a piece is cut into: whole runs of m * kernel elements, and whole bytes of bits.
int64_t unit_of(const TensorRef& t, int64_t m) { return std::lcm<int64_t>(8, m * std::max<int64_t>(Axes(t).kernel, 1)); }

bool vectorised(const TensorRef& t, int64_t m) { return (m == 2 || m == 4 || m == 8) && unit_of(t, m) <= kMaxRun; }

// Sets the bits of one group: m keys, `apart` elements from each other; the bit of the first is `at`, of the next at + kernel.
template <class U>
bool select(const U* first, int64_t apart, KeyRule<U> rule, int64_t n, int64_t m, uint8_t* bits, int64_t at, int64_t kernel) {
  constexpr int64_t kNear = 512;
  U near[kNear];  // larger groups are read anew each time
  const bool copied = m <= kNear;
  auto read = [&](int64_t j) {
    const U u = static_cast<U>(first[j * apart] & rule.magnitude);
    return u < rule.nan ? u : rule.nan;
  };
  auto key = [&](int64_t j) { return copied ? near[j] : read(j); };
  for (int64_t j = 0; copied && j < m; ++j) near[j] = read(j);
  U nth = 0;  // the largest key that at least n reach
  for (int bit = static_cast<int>(sizeof(U)) * 8 - 2; bit >= 0; --bit) {
    const U tried = static_cast<U>(nth | U{1} << bit);
    int64_t reach = 0;
    for (int64_t j = 0; j < m; ++j) reach += key(j) >= tried;
    if (reach >= n) nth = tried;
  }
  int64_t equal = n;
  for (int64_t j = 0; j < m; ++j) equal -= key(j) > nth;
  bool nan = false;
  for (int64_t j = 0; j < m; ++j) {
    const U k = key(j);
    nan |= k == rule.nan;
    if (k < nth || (k == nth && equal-- <= 0)) continue;
    const int64_t i = at + j * kernel;
    bits[i >> 3] = static_cast<uint8_t>(bits[i >> 3] | 1u << (i & 7));
  }
  return nan;
}

// Any m and any strides, a group at a time. Whether there was a NaN.
template <class U>
bool general(const TensorRef& t, const Piece& piece, KeyRule<U> rule, int64_t n, int64_t m, uint8_t* bits) {
  const int64_t kernel = Axes(t).kernel, run = m * kernel;
  std::memset(bits, 0, static_cast<size_t>((piece.count + 7) / 8));
  bool nan = false;
  for (int64_t at = 0; at < piece.count; at += run)  // a run's first `kernel` elements are the first of its groups
    for_each_run(t, piece.begin + at, kernel, [&](int64_t offset, int64_t stride, int64_t length, int64_t from) {
      for (int64_t i = 0; i < length; ++i)
        nan |= select(static_cast<const U*>(t.data) + offset + i * stride, t.strides[1], rule, n, m, bits, at + from + i, kernel);
    });
  return nan;
}

template <class U>
void n_m(const PatternProblem& problem, int64_t n, int64_t m, const Pool& all) {
  const GroupLoops<U>& loops = group_loops<U>(pattern_kernels());
  const KeyRule<U> rule = rule_for<U>(problem.dtype);
  const std::vector<Piece> pieces = make_pieces(problem, [&](int t) { return unit_of(problem.weights[t], m); });
  const Pool pool = all.for_elements(total_numel(problem));
  std::fill_n(problem.nan_count, problem.tensors, int64_t{0});
  for_each_item(pool, static_cast<int64_t>(pieces.size()), [&](int, int64_t i) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    const TensorRef& t = problem.weights[piece.tensor];
    uint8_t* const bits = problem.bits[piece.tensor] + piece.begin / 8;
    bool nan;
    if (vectorised(t, m)) {
      const int64_t kernel = Axes(t).kernel, unit = unit_of(t, m);
      U largest = 0;
      in_order<U>(t, piece.begin, piece.count, kMaxRun / unit * unit, [&](const U* p, int64_t count, int64_t at) {
        if (kernel == 1)
          loops.consecutive(p, count, rule, static_cast<int>(n), static_cast<int>(m), bits + at / 8, &largest);
        else
          loops.strided(p, count, kernel, rule, static_cast<int>(n), static_cast<int>(m), bits + at / 8, &largest);
      });
      nan = largest >= rule.nan;
    } else {
      nan = general<U>(t, piece, rule, n, m, bits);
    }
    if (nan) count_nans<U>(problem, piece.tensor, piece.begin, piece.count);
  });
}

}  // namespace

void n_m_mask_cpu(const PatternProblem& problem, int64_t n, int64_t m, const Pool& pool) {
  switch (element_bytes(problem.dtype)) {
    case 8: return n_m<uint64_t>(problem, n, m, pool);
    case 4: return n_m<uint32_t>(problem, n, m, pool);
    default: return n_m<uint16_t>(problem, n, m, pool);
  }
}

}  // namespace acdc
