// The `pattern` argument of topk_mask, for its bindings.
#pragma once
#include <string_view>

#include "bindings/convert.h"

namespace acdc {

struct Pattern {
  enum Kind { unstructured, n_m, transposable, block } kind;
  int64_t first = 1, second = 1;  // n and m; rows and columns
  bool fixed() const { return kind == n_m || kind == transposable; }
};

// The number at the front of `text`, which is moved past it; 0 if there is none.
inline int64_t number(std::string_view* text) {
  int64_t value = 0;
  for (; !text->empty() && text->front() >= '0' && text->front() <= '9' && value < int64_t{1} << 27; text->remove_prefix(1))
    value = 10 * value + (text->front() - '0');
  return value;
}

inline Pattern parse(const std::string& pattern) {
  if (pattern == "unstructured") return {Pattern::unstructured};
  if (pattern == "2:4-transposable") return {Pattern::transposable};
  std::string_view text = pattern;
  const bool block = text.substr(0, 6) == "block:";
  if (block) text.remove_prefix(6);
  const int64_t first = number(&text);
  const bool joined = !text.empty() && text.front() == (block ? 'x' : ':');
  if (joined) text.remove_prefix(1);
  const int64_t second = number(&text);
  STD_TORCH_CHECK(joined && text.empty() && first >= 1 && second >= 1 && (block || first < second),
                  "topk_mask: pattern must be 'unstructured', 'n:m', '2:4-transposable' or 'block:RxC', got '", pattern, "'");
  return {block ? Pattern::block : Pattern::n_m, first, second};
}

// Memory safety: the public function says which weight and which axis.
inline void check_fits(const Tensor& w, const Pattern& p) {
  if (p.kind == Pattern::unstructured) return;
  const int64_t rows = p.kind == Pattern::transposable ? 4 : p.kind == Pattern::block ? p.first : 1;
  const int64_t columns = p.kind == Pattern::transposable ? 4 : p.second;
  STD_TORCH_CHECK(w.dim() >= 2 && w.size(0) % rows == 0 && w.size(1) % columns == 0,
                  "topk_mask: weights must have dims 0 and 1 that the pattern divides");
}

inline void check_budgets(const std::vector<Tensor>& weights, const std::vector<int64_t>& keep, const Pattern& p) {
  STD_TORCH_CHECK(!weights.empty() && (p.fixed() ? keep.empty() : keep.size() == 1 || keep.size() == weights.size()),
                  "topk_mask: keep must have one entry, or one a weight; none with pattern 'n:m' or '2:4-transposable'");
}

}  // namespace acdc
