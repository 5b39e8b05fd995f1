#include "sparse_linear/bundles.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "sparse_linear/mask_words.h"

namespace acdc {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the entries of one row go: `at` for the next one, a stride further each time; after `steps` more, `rest`.
struct Cursor {
  int32_t at, rest;
  int16_t steps, stride;

  int32_t next() {
    if (steps == 0) return rest++;
    --steps;
    const int32_t here = at;
    at = static_cast<int32_t>(static_cast<uint32_t>(at) + static_cast<uint32_t>(stride));  // beyond the last entry nobody reads it
    return here;
  }
};

// Bundles the rows of one (panel, block) by their counts and says where each row's entries go, from entry `start` on.
void bundle_rows(const uint16_t* counts, int rows, int panel_rows, int64_t start, Bundle* bundles, Cursor* cursors) {
  uint16_t place[kLargestBlock + 2] = {0};  // counting sort, most first, ties in order
  for (int r = 0; r < rows; ++r) ++place[kLargestBlock - counts[r] + 1];
  for (int k = 0; k <= kLargestBlock; ++k) place[k + 1] = static_cast<uint16_t>(place[k + 1] + place[k]);
  std::vector<int16_t> order(static_cast<size_t>(rows) + 3, static_cast<int16_t>(panel_rows));
  for (int r = 0; r < rows; ++r) order[place[kLargestBlock - counts[r]]++] = static_cast<int16_t>(r);
  for (int i = 0; i < rows; i += 4, ++bundles) {
    auto count = [&](int s) { return order[i + s] == panel_rows ? 0 : counts[order[i + s]]; };
    const int steps = count(3);
    bundles->steps = static_cast<int16_t>(steps);
    int64_t rest = start + 4 * steps;
    for (int s = 0; s < 4; ++s) {
      const int row = bundles->row[s] = order[i + s];
      if (row != panel_rows) cursors[row] = {static_cast<int32_t>(start + s), static_cast<int32_t>(rest), static_cast<int16_t>(steps), 4};
      const int left = count(s) - steps;
      if (s < 3) bundles->rest[s] = static_cast<int16_t>(left);
      rest += left;
    }
    start = rest;
  }
}

// The same for groups of four rows that keep the same columns: entries are steps.
void bundle_groups(const uint16_t* counts, int groups, int64_t start, Bundle* bundles, Cursor* cursors) {
  uint16_t place[kLargestBlock + 2] = {0};
  for (int g = 0; g < groups; ++g) ++place[kLargestBlock - counts[g] + 1];
  for (int k = 0; k <= kLargestBlock; ++k) place[k + 1] = static_cast<uint16_t>(place[k + 1] + place[k]);
  std::vector<int16_t> order(static_cast<size_t>(groups));
  for (int g = 0; g < groups; ++g) order[place[kLargestBlock - counts[g]]++] = static_cast<int16_t>(g);
  for (int i = 0; i < groups; ++i, ++bundles) {
    const int g = order[i];
    *bundles = Bundle{{}, static_cast<int16_t>(counts[g]), {0, 0, 0}};
    for (int s = 0; s < 4; ++s) bundles->row[s] = static_cast<int16_t>(4 * g + s);
    cursors[g] = {static_cast<int32_t>(start), 0, static_cast<int16_t>(counts[g]), 1};
    start += counts[g];
  }
}

class Builder {
 public:
  Builder(const uint8_t* bits, const BundleIndex& index, const Pool& pool)
      : mask_(bits, index.rows * index.cols),
        index_(index),
        pool_(pool.for_elements(index.rows * index.cols / 4)),
        group_(index.format == BundleFormat::block4x1 ? 4 : 1),
        groups_(index.rows / group_) {}

  BundleError build() {
    fill_rank();
    if (index_.rank[ceil_div(index_.rows * index_.cols, kRankElements)] != index_.kept) return BundleError::count_differs;
    if (group_ == 4 && !groups_agree()) return BundleError::groups_differ;
    rows_side();
    columns_side();
    return BundleError::none;
  }

 private:
  void fill_rank() {
    const int64_t n = index_.rows * index_.cols, chunks = ceil_div(n, kRankElements), per_item = 64;
    for_each_item(pool_, ceil_div(chunks, per_item), [&](int, int64_t item) {
      for (int64_t c = item * per_item; c < std::min(chunks, (item + 1) * per_item); ++c)
        index_.rank[c + 1] = mask_.count(c * kRankElements, std::min(n, (c + 1) * kRankElements));
    });
    index_.rank[0] = 0;
    for (int64_t c = 0; c < chunks; ++c) index_.rank[c + 1] += index_.rank[c];
  }

  bool groups_agree() {
    std::atomic<bool> agree{true};
    for_each_item(pool_, groups_, [&](int, int64_t g) {
      std::vector<uint64_t> first;
      for (int64_t s = 0; s < 4; ++s) {
        std::vector<uint64_t> row(static_cast<size_t>(ceil_div(index_.cols, 64)), 0);
        const int64_t begin = (4 * g + s) * index_.cols;
        mask_.for_each_set(begin, begin + index_.cols, [&](int64_t i) { row[static_cast<size_t>(i - begin) >> 6] |= uint64_t{1} << ((i - begin) & 63); });
        if (s == 0) first = row;
        else if (row != first) agree.store(false, std::memory_order_relaxed);
      }
    });
    return agree.load();
  }

  // Groups are rows of `cols` bits each (in the 4x1 format, the first row of four stands for them all).
  int64_t first_bit(int64_t group) const { return group * group_ * index_.cols; }

  void rows_side() {
    const int64_t cols = index_.cols, block = index_.block_cols, blocks = ceil_div(cols, block);
    const int64_t panel = index_.panel_rows / group_, panels = ceil_div(groups_, panel);
    std::vector<uint16_t> counts(static_cast<size_t>(groups_ * blocks));  // [panel][block][group within the panel]
    auto counts_of = [&](int64_t p, int64_t b) { return counts.data() + p * panel * blocks + b * std::min(panel, groups_ - p * panel); };
    for_each_item(pool_, panels, [&](int, int64_t p) {
      const int64_t first = p * panel, here = std::min(panel, groups_ - first);
      for (int64_t b = 0; b < blocks; ++b) {
        uint16_t* count = counts_of(p, b);
        int64_t sum = 0;
        for (int64_t g = 0; g < here; ++g) {
          const int64_t row = first_bit(first + g);
          count[g] = static_cast<uint16_t>(mask_.count(row + b * block, row + std::min(cols, (b + 1) * block)));
          sum += count[g];
        }
        index_.starts[p * blocks + b + 1] = group_ * sum;
      }
    });
    index_.starts[0] = 0;
    for (int64_t i = 0; i < panels * blocks; ++i) index_.starts[i + 1] += index_.starts[i];

    row_start_.resize(static_cast<size_t>(index_.rows) + 1);
    for_each_item(pool_, panels, [&](int, int64_t p) {
      const int64_t first = p * panel, here = std::min(panel, groups_ - first);
      std::vector<int64_t> cursor(static_cast<size_t>(here * group_));  // next of each row's kept elements in row-major order
      int64_t start = index_.starts[p * blocks];                       // panels are runs of rows: so many are before this one
      for (int64_t r = 0; r < here * group_; ++r) {
        row_start_[static_cast<size_t>(first * group_ + r)] = cursor[static_cast<size_t>(r)] = start;
        for (int64_t b = 0; b < blocks; ++b) start += counts_of(p, b)[r / group_];
      }
      std::vector<Cursor> place(static_cast<size_t>(here));
      std::vector<uint16_t> list(static_cast<size_t>(block) + MaskWords::kListSlack);
      const int64_t bundles = group_ == 4 ? here : ceil_div(here, 4);
      Bundle* out = index_.bundles + p * (index_.panel_rows / 4) * blocks;
      for (int64_t b = 0; b < blocks; ++b, out += bundles) {
        const int64_t begin = index_.starts[p * blocks + b] / group_;
        if (group_ == 4) bundle_groups(counts_of(p, b), static_cast<int>(here), begin, out, place.data());
        else bundle_rows(counts_of(p, b), static_cast<int>(here), index_.panel_rows, begin, out, place.data());
        for (int64_t g = 0; g < here; ++g) {
          const int64_t row = first_bit(first + g), left = row + b * block;
          const Cursor to = place[static_cast<size_t>(g)];
          const int n = mask_.list(left, row + std::min(cols, (b + 1) * block), list.data());
          auto put = [&](int i, int32_t entry) {
            index_.offsets[entry] = static_cast<int16_t>(list[static_cast<size_t>(i)] * kOffsetUnit);
            int64_t* k = &cursor[static_cast<size_t>(g * group_)];
            if (group_ == 1) index_.position[k[0] + i] = entry;
            else for (int s = 0; s < 4; ++s) index_.position[k[s] + i] = 4 * entry + s;
          };
          for (int i = 0; i < to.steps; ++i) put(i, to.at + i * to.stride);
          for (int i = to.steps; i < n; ++i) put(i, to.rest + i - to.steps);
          for (int64_t s = 0; s < group_; ++s) cursor[static_cast<size_t>(g * group_ + s)] += n;
        }
      }
    });
  }

  void columns_side() {
    const int64_t cols = index_.cols, panel = index_.t_panel_rows, panels = ceil_div(cols, panel);
    const int64_t block = index_.t_block_cols / group_, blocks = ceil_div(groups_, block);  // in groups of rows
    std::vector<uint16_t> counts(static_cast<size_t>(cols * blocks), 0);                   // [block][column]
    for_each_item(pool_, blocks, [&](int, int64_t b) {
      uint16_t* count = counts.data() + b * cols;
      std::vector<uint16_t> list(static_cast<size_t>(panel) + MaskWords::kListSlack);
      for (int64_t g = b * block; g < std::min(groups_, (b + 1) * block); ++g)
        for (int64_t c = 0; c < cols; c += panel) {
          const int n = mask_.list(first_bit(g) + c, first_bit(g) + std::min(cols, c + panel), list.data());
          for (int i = 0; i < n; ++i) ++count[c + list[static_cast<size_t>(i)]];
        }
      for (int64_t p = 0; p < panels; ++p) {
        int64_t sum = 0;
        for (int64_t c = p * panel; c < std::min(cols, (p + 1) * panel); ++c) sum += count[c];
        index_.t_starts[p * blocks + b + 1] = sum;
      }
    });
    index_.t_starts[0] = 0;
    for (int64_t i = 0; i < panels * blocks; ++i) index_.t_starts[i + 1] += index_.t_starts[i];

    for_each_item(pool_, blocks, [&](int, int64_t b) {
      const int64_t first = b * block, last = std::min(groups_, first + block);
      std::vector<Cursor> place(static_cast<size_t>(panel));
      std::vector<uint16_t> list(static_cast<size_t>(panel) + MaskWords::kListSlack);
      std::vector<int64_t> cursor(static_cast<size_t>(last - first));  // next of each row's kept elements in row-major order
      for (int64_t g = first; g < last; ++g) cursor[static_cast<size_t>(g - first)] = row_start_[static_cast<size_t>(g * group_)];
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t left = p * panel, here = std::min(panel, cols - left);
        Bundle* out = index_.t_bundles + p * (panel / 4) * blocks + b * ceil_div(here, 4);
        bundle_rows(counts.data() + b * cols + left, static_cast<int>(here), index_.t_panel_rows, index_.t_starts[p * blocks + b], out, place.data());
        for (int64_t g = first; g < last; ++g) {
          const int64_t begin = first_bit(g) + left;
          const int16_t offset = static_cast<int16_t>((g - first) * group_ * kOffsetUnit);
          const int32_t* position = index_.position + cursor[static_cast<size_t>(g - first)];
          const int n = mask_.list(begin, begin + here, list.data());
          for (int i = 0; i < n; ++i) {
            const int32_t entry = place[list[static_cast<size_t>(i)]].next();
            index_.t_offsets[entry] = offset;
            index_.t_permutation[entry] = group_ == 4 ? position[i] / 4 : position[i];
          }
          cursor[static_cast<size_t>(g - first)] += n;
        }
      }
    });
  }

  MaskWords mask_;
  const BundleIndex& index_;
  Pool pool_;
  int64_t group_, groups_;
  std::vector<int64_t> row_start_;  // [rows] kept elements before each row
};

constexpr int64_t kListed = 1024;  // columns whose kept ones are listed at a time

// f(row, first kept element of the row) for all rows, in parallel; none of a group of rows whose mask isn't the one that `rank` counts.
template <class F>
BundleError for_each_row(const MaskWords& mask, const int64_t* rank, int64_t rows, int64_t cols, const Pool& pool, const F& f) {
  const int64_t per_item = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, cols));
  std::atomic<bool> same{true};
  for_each_item(pool.for_elements(rows * cols / 4), ceil_div(rows, per_item), [&](int, int64_t item) {
    const int64_t first = item * per_item, last = std::min(rows, first + per_item), chunk = first * cols / kRankElements;
    for (int64_t c = chunk; c * kRankElements < last * cols; ++c) {
      const int64_t end = std::min(rows * cols, (c + 1) * kRankElements);
      if (rank[c] + mask.count(c * kRankElements, end) != rank[c + 1]) return same.store(false, std::memory_order_relaxed);
    }
    int64_t k = rank[chunk] + mask.count(chunk * kRankElements, first * cols);
    for (int64_t r = first; r < last; ++r) k = f(r, k);
  });
  return same.load() ? BundleError::none : BundleError::mask_differs;
}

template <class T>
BundleError gather(const T* weight, int64_t row_stride, int64_t col_stride, const MaskWords& mask, const int64_t* rank, const int32_t* position,
            int64_t rows, int64_t cols, T* values, const Pool& pool) {
  return for_each_row(mask, rank, rows, cols, pool, [&](int64_t r, int64_t k) {
    const T* w = weight + r * row_stride;
    const int64_t begin = r * cols;
    uint16_t list[kListed + MaskWords::kListSlack];
    for (int64_t c = 0; c < cols; c += kListed, w += kListed * col_stride) {
      const int n = mask.list(begin + c, begin + std::min(cols, c + kListed), list);
      if (col_stride == 1) for (int i = 0; i < n; ++i) values[position[k + i]] = w[list[i]];
      else for (int i = 0; i < n; ++i) values[position[k + i]] = w[list[i] * col_stride];
      k += n;
    }
    return k;
  });
}

template <class T>
BundleError scatter(const T* values, const MaskWords& mask, const int64_t* rank, const int32_t* position, int64_t rows, int64_t cols, T* weight,
             const Pool& pool) {
  return for_each_row(mask, rank, rows, cols, pool, [&](int64_t r, int64_t k) {
    T* w = weight + r * cols;
    uint16_t list[kListed + MaskWords::kListSlack];
    for (int64_t c = 0; c < cols; c += kListed, w += kListed) {
      const int64_t here = std::min(cols - c, kListed);
      const int n = mask.list(r * cols + c, r * cols + c + here, list);
      std::fill_n(w, here, T{0});
      for (int i = 0; i < n; ++i) w[list[i]] = values[position[k + i]];
      k += n;
    }
    return k;
  });
}

}  // namespace

int64_t bundle_count(int64_t rows, int64_t cols, int32_t panel_rows, int32_t block_cols) {
  const int64_t whole = rows / panel_rows, left = rows % panel_rows;
  return (whole * (panel_rows / 4) + (left + 3) / 4) * ceil_div(cols, block_cols);
}

BundleError build_bundles_cpu(const uint8_t* bits, const BundleIndex& index, const Pool& pool) { return Builder(bits, index, pool).build(); }

BundleError gather_values_cpu(const void* weight, int64_t row_stride, int64_t col_stride, const uint8_t* bits, const int64_t* rank,
                       const int32_t* position, int64_t rows, int64_t cols, int bytes, void* values, const Pool& pool) {
  const MaskWords mask(bits, rows * cols);
  auto run = [&](auto element) {
    using T = decltype(element);
    return gather(static_cast<const T*>(weight), row_stride, col_stride, mask, rank, position, rows, cols, static_cast<T*>(values), pool);
  };
  return bytes == 2 ? run(uint16_t{}) : bytes == 4 ? run(uint32_t{}) : run(uint64_t{});
}

BundleError scatter_values_cpu(const void* values, const uint8_t* bits, const int64_t* rank, const int32_t* position, int64_t rows, int64_t cols,
                        int bytes, void* weight, const Pool& pool) {
  const MaskWords mask(bits, rows * cols);
  auto run = [&](auto element) {
    using T = decltype(element);
    return scatter(static_cast<const T*>(values), mask, rank, position, rows, cols, static_cast<T*>(weight), pool);
  };
  return bytes == 2 ? run(uint16_t{}) : bytes == 4 ? run(uint32_t{}) : run(uint64_t{});
}

}  // namespace acdc
