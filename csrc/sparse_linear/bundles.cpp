#include "sparse_linear/bundles.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include "sparse_linear/mask_words.h"

namespace acdc {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the entries of one row go: every `stride`-th from `at` for `steps` of them, then from `rest` on.
struct Cursor {
  int32_t at, rest;
  int16_t steps, stride;

  // f(i, entry) for the row's entries, which are n.
  template <class F>
  void for_each(int n, const F& f) const {
    for (int i = 0; i < steps; ++i) f(i, at + i * stride);
    for (int i = steps; i < n; ++i) f(i, rest + i - steps);
  }
};

// The kept columns of the rows of one (panel, block), row after row.
class Lists {
 public:
  Lists(int64_t rows, int64_t kept) : columns_(static_cast<size_t>(kept) + kListSlack) {
    begins_.reserve(static_cast<size_t>(rows) + 1);
    begins_.push_back(0);
  }

  // One row more: list(columns) writes it and says how many there are.
  template <class F>
  void add(const F& list) {
    begins_.push_back(begins_.back() + list(columns_.data() + begins_.back()));
  }

  int rows() const { return static_cast<int>(begins_.size()) - 1; }
  int count(int row) const { return begins_[static_cast<size_t>(row) + 1] - begins_[static_cast<size_t>(row)]; }
  const uint16_t* columns(int row) const { return columns_.data() + begins_[static_cast<size_t>(row)]; }

  // Rows by falling count, ties in order, and `missing` three times.
  std::vector<int16_t> order(int missing) const {
    uint16_t place[kLargestBlock + 2] = {0};
    for (int r = 0; r < rows(); ++r) ++place[kLargestBlock - count(r) + 1];
    for (int k = 0; k <= kLargestBlock; ++k) place[k + 1] = static_cast<uint16_t>(place[k + 1] + place[k]);
    std::vector<int16_t> order(static_cast<size_t>(rows()) + 3, static_cast<int16_t>(missing));
    for (int r = 0; r < rows(); ++r) order[place[kLargestBlock - count(r)]++] = static_cast<int16_t>(r);
    return order;
  }

 private:
  std::vector<uint16_t> columns_;
  std::vector<int32_t> begins_;
};

// Bundles the rows of one (panel, block) and writes their offsets, columns times `scale`, from entry `start` on.
std::vector<Cursor> bundle_rows(const Lists& lists, int panel_rows, int64_t start, int scale, Bundle* bundles, int16_t* offsets) {
  std::vector<Cursor> cursors(static_cast<size_t>(lists.rows()));
  const std::vector<int16_t> order = lists.order(panel_rows);
  for (int i = 0; i < lists.rows(); i += 4, ++bundles) {
    const uint16_t* columns[4] = {};
    int count[4] = {0, 0, 0, 0};
    for (int s = 0; s < 4; ++s) {
      const int row = bundles->row[s] = order[static_cast<size_t>(i + s)];
      if (row != panel_rows) columns[s] = lists.columns(row), count[s] = lists.count(row);
    }
    const int steps = count[3];
    bundles->steps = static_cast<int16_t>(steps);
    int16_t* out = offsets + start;
    for (int t = 0; t < steps; ++t)
      for (int s = 0; s < 4; ++s) out[4 * t + s] = static_cast<int16_t>(columns[s][t] * scale);
    int64_t rest = start + 4 * steps;
    for (int s = 0; s < 4; ++s) {
      const int row = bundles->row[s], left = count[s] - steps;
      if (row != panel_rows) cursors[static_cast<size_t>(row)] = {static_cast<int32_t>(start + s), static_cast<int32_t>(rest), static_cast<int16_t>(steps), 4};
      if (s < 3) bundles->rest[s] = static_cast<int16_t>(left);
      for (int t = 0; t < left; ++t) offsets[rest + t] = static_cast<int16_t>(columns[s][steps + t] * scale);
      rest += left;
    }
    start = rest;
  }
  return cursors;
}

// The same for groups of four rows that keep the same columns: entries are steps.
std::vector<Cursor> bundle_groups(const Lists& lists, int64_t start, Bundle* bundles, int16_t* offsets) {
  std::vector<Cursor> cursors(static_cast<size_t>(lists.rows()));
  const std::vector<int16_t> order = lists.order(0);
  for (int i = 0; i < lists.rows(); ++i, ++bundles) {
    const int g = order[static_cast<size_t>(i)], steps = lists.count(g);
    *bundles = Bundle{{}, static_cast<int16_t>(steps), {0, 0, 0}};
    for (int s = 0; s < 4; ++s) bundles->row[s] = static_cast<int16_t>(4 * g + s);
    cursors[static_cast<size_t>(g)] = {static_cast<int32_t>(start), 0, static_cast<int16_t>(steps), 1};
    for (int t = 0; t < steps; ++t) offsets[start + t] = static_cast<int16_t>(lists.columns(g)[t] * kOffsetUnit);
    start += steps;
  }
  return cursors;
}

class Builder {
 public:
  Builder(const uint8_t* bits, const BundleIndex& index, const Pool& pool)
      : mask_(bits, index.rows * index.cols),
        index_(index),
        pool_(pool.for_elements(index.rows * index.cols / 4)),
        group_(index.format == BundleFormat::block4x1 ? 4 : 1),
        groups_(index.rows / group_),
        stop_(std::gcd(index.block_cols, index.t_panel_rows)),
        stops_(ceil_div(index.cols, stop_) + 1) {}

  BundleError build() {
    fill_rank();
    if (index_.rank[ceil_div(index_.rows * index_.cols, kRankElements)] != index_.kept) return BundleError::count_differs;
    if (group_ == 4 && !groups_agree()) return BundleError::groups_differ;
    fill_kept_before();
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

  bool groups_agree() const {
    std::atomic<bool> agree{true};
    for_each_item(pool_, groups_, [&](int, int64_t g) {
      const int64_t cols = index_.cols, row = first_bit(g);
      for (int64_t c = 0; c < cols; c += 64)
        for (int64_t s = 1; s < 4; ++s)
          if (mask_.at(row + c, row + cols) != mask_.at(row + s * cols + c, row + (s + 1) * cols)) return agree.store(false, std::memory_order_relaxed);
    });
    return agree.load();
  }

  // Groups are rows of `cols` bits each (in the 4x1 format, the first row of four stands for them all).
  int64_t first_bit(int64_t group) const { return group * group_ * index_.cols; }

  // kept_before_[group][i]: kept elements before column i * stop_ of the group's first row, or before its end.
  void fill_kept_before() {
    const int64_t cols = index_.cols, per_item = 64;
    kept_before_.resize(static_cast<size_t>(groups_ * stops_));
    for_each_item(pool_, ceil_div(groups_, per_item), [&](int, int64_t item) {
      const int64_t first = item * per_item, chunk = first_bit(first) / kRankElements;
      int64_t k = index_.rank[chunk] + mask_.count(chunk * kRankElements, first_bit(first));
      int32_t* out = kept_before_.data() + first * stops_;
      for (int64_t g = first; g < std::min(groups_, first + per_item); ++g) {
        const int64_t row = first_bit(g), start = k;
        for (int64_t c = 0; c < cols; c += stop_) {
          *out++ = static_cast<int32_t>(k);
          k += mask_.count(row + c, row + std::min(cols, c + stop_));
        }
        *out++ = static_cast<int32_t>(k);
        k += (group_ - 1) * (k - start);
      }
    });
  }

  // `column` is a multiple of stop_, or cols.
  const int32_t* kept_before(int64_t group, int64_t column) const { return kept_before_.data() + group * stops_ + ceil_div(column, stop_); }

  // Kept elements of columns [left, right) in groups [first, last), of each group's first row.
  int64_t kept_in(int64_t first, int64_t last, int64_t left, int64_t right) const {
    const int32_t *from = kept_before(first, left), *to = kept_before(first, right);
    int64_t n = 0;
    for (int64_t g = first; g < last; ++g, from += stops_, to += stops_) n += *to - *from;
    return n;
  }

  void rows_side() {
    const int64_t cols = index_.cols, block = index_.block_cols, blocks = ceil_div(cols, block);
    const int64_t panel = index_.panel_rows / group_, panels = ceil_div(groups_, panel);
    index_.starts[0] = 0;
    for (int64_t p = 0, i = 0; p < panels; ++p)
      for (int64_t b = 0; b < blocks; ++b, ++i)
        index_.starts[i + 1] =
            index_.starts[i] + group_ * kept_in(p * panel, std::min(groups_, (p + 1) * panel), b * block, std::min(cols, (b + 1) * block));

    for_each_item(pool_, panels * blocks, [&](int, int64_t item) {
      const int64_t p = item % panels, b = item / panels;  // neighbours in time don't write to the same rows
      const int64_t first = p * panel, here = std::min(panel, groups_ - first), left = b * block, right = std::min(cols, left + block);
      const int64_t start = index_.starts[p * blocks + b] / group_;
      Lists lists(here, index_.starts[p * blocks + b + 1] / group_ - start);
      for (int64_t g = first; g < first + here; ++g)
        lists.add([&](uint16_t* list) { return mask_.list(first_bit(g) + left, first_bit(g) + right, list); });
      Bundle* out = index_.bundles + p * (index_.panel_rows / 4) * blocks + b * (group_ == 4 ? here : ceil_div(here, 4));
      const std::vector<Cursor> cursors = group_ == 4 ? bundle_groups(lists, start, out, index_.offsets)
                                                      : bundle_rows(lists, index_.panel_rows, start, kOffsetUnit, out, index_.offsets);
      for (int64_t g = 0; g < here; ++g) {
        const Cursor cursor = cursors[static_cast<size_t>(g)];
        const int n = lists.count(static_cast<int>(g));
        int32_t* position = index_.position + *kept_before(first + g, left);
        if (group_ == 1) {
          cursor.for_each(n, [=](int i, int32_t entry) { position[i] = entry; });
        } else {
          const int32_t row = *kept_before(first + g, cols) - *kept_before(first + g, 0);
          for (int s = 0; s < 4; ++s, position += row) cursor.for_each(n, [=](int i, int32_t entry) { position[i] = 4 * entry + s; });
        }
      }
    });
  }

  void columns_side() {
    const int64_t cols = index_.cols, panel = index_.t_panel_rows, panels = ceil_div(cols, panel);
    const int64_t block = index_.t_block_cols / group_, blocks = ceil_div(groups_, block);  // in groups of rows
    index_.t_starts[0] = 0;
    for (int64_t p = 0, i = 0; p < panels; ++p)
      for (int64_t b = 0; b < blocks; ++b, ++i)
        index_.t_starts[i + 1] =
            index_.t_starts[i] + kept_in(b * block, std::min(groups_, (b + 1) * block), p * panel, std::min(cols, (p + 1) * panel));

    for_each_item(pool_, panels * blocks, [&](int, int64_t item) {
      const int64_t p = item / blocks, b = item % blocks, start = index_.t_starts[item];
      const int64_t left = p * panel, here = std::min(panel, cols - left), first = b * block, last = std::min(groups_, first + block);
      Lists lists(here, index_.t_starts[item + 1] - start);
      for (int64_t c = left; c < left + here; c += 64) {
        uint64_t turned[kLargestBlock / 64][64];  // bit i of [w][j]: group first + 64 * w + i, column c + j
        for (int64_t w = 0; 64 * w < last - first; ++w) {
          for (int64_t i = 0, g = first + 64 * w; i < 64; ++i, ++g) turned[w][i] = g < last ? mask_.at(first_bit(g) + c, first_bit(g) + left + here) : 0;
          transpose(turned[w]);
        }
        for (int64_t j = 0; j < std::min<int64_t>(64, left + here - c); ++j)
          lists.add([&](uint16_t* list) {
            uint16_t* out = list;
            for (int64_t w = 0; 64 * w < last - first; ++w) out = list_word(turned[w][j], static_cast<int>(64 * w), out);
            return static_cast<int>(out - list);
          });
      }
      Bundle* out = index_.t_bundles + p * (panel / 4) * blocks + b * ceil_div(here, 4);
      const std::vector<Cursor> cursors = bundle_rows(lists, index_.t_panel_rows, start, static_cast<int>(group_) * kOffsetUnit, out, index_.t_offsets);

      std::vector<const int32_t*> places(static_cast<size_t>(last - first));  // of each row's kept elements, the next one first
      for (int64_t g = first; g < last; ++g) places[static_cast<size_t>(g - first)] = index_.position + *kept_before(g, left);
      const int32_t** next = places.data();  // copies of pointers: these stores may alias what holds them
      int32_t* permutation = index_.t_permutation;
      const int shift = group_ == 4 ? 2 : 0;
      for (int c = 0; c < lists.rows(); ++c) {
        const uint16_t* rows = lists.columns(c);
        const Cursor cursor = cursors[static_cast<size_t>(c)];
        cursor.for_each(lists.count(c), [=](int i, int32_t entry) { permutation[entry] = *next[rows[i]]++ >> shift; });
      }
    });
  }

  MaskWords mask_;
  const BundleIndex& index_;
  Pool pool_;
  int64_t group_, groups_;
  int64_t stop_, stops_;  // blocks of the rows side and panels of the columns side begin at multiples of stop_ columns
  std::vector<int32_t> kept_before_;
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
    uint16_t list[kListed + kListSlack];
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
    uint16_t list[kListed + kListSlack];
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
