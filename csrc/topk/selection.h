// Exact selection of the largest keys over anything that can be read as chunks of elements: tensors, or scores computed as they are
// read. The method is in topk.h. Shared by the .cpp files of this room; everything sits in an anonymous namespace.
//
// A Source of elements U (an unsigned integer as wide as the floating type) is read from many threads at once and has
//   int tensors();  int64_t numel(int t);   how many elements each tensor has
//   int64_t work();                         how many weights one pass reads: what waking threads must be worth
//   blocks(chunk, f)                        f(elements, count, position in the chunk) over one chunk in logical order; every block but
//                                           a chunk's last has a multiple of 8 elements
//   copy(t, begin, count, out);  prefetch(t, begin)
//   kBracketFrom                            fewer elements than this go to the radix selection at once
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/chunks.h"
#include "topk/key_rule.h"
#include "topk/topk.h"
#include "topk/topk_kernels.h"

namespace acdc {
namespace {

constexpr int32_t kChunk = 16384;         // candidates carry a 16-bit index within their chunk
constexpr int64_t kSlab = 2048;           // candidates that a worker takes room for at a time
constexpr int64_t kRun = 16;              // neighbours drawn together: a cache line of float32
constexpr int64_t kSlices = 16;           // work items that the sample is drawn and counted in
constexpr double kSigmas = 4.5;           // half width of the bracket; neighbours in a run of the sample resemble each other

template <class U> constexpr int kKeyBits = sizeof(U) * 8 - 1;
template <class U> constexpr int kBinBits = sizeof(U) == 2 ? 15 : 12;
template <class U> constexpr int64_t kBins = int64_t{1} << kBinBits<U>;
template <class U> constexpr int64_t kCandidateBytes = sizeof(U) + sizeof(uint16_t);

template <class U> const TopkLoops<U>& loops_for();
template <> inline const TopkLoops<uint16_t>& loops_for() { return topk_kernels().u16; }
template <> inline const TopkLoops<uint32_t>& loops_for() { return topk_kernels().u32; }
template <> inline const TopkLoops<uint64_t>& loops_for() { return topk_kernels().u64; }

inline int64_t sample_size(int64_t numel) { return std::clamp<int64_t>(numel / 32, 8192, 131072) / kRun * kRun; }

// Histograms, one a worker, that keep the total within bounds: 16-bit keys take 128 KiB each.
template <class U>
int histogram_workers(int threads) {
  return std::min(threads, sizeof(U) == 2 ? 4 : 16);
}

template <class U>
int64_t histogram_bytes(int threads) {
  return kBins<U> * (8 + 4 * histogram_workers<U>(threads));
}

// Room for the bracket's candidates among elements of `bytes` in all. It holds 0.75% of a large model's weights, some 1.1% of the
// bytes; room for twice that, and slabs for part-filled ends.
template <class U>
int64_t candidate_bytes(int64_t bytes) {
  const int64_t slab = kSlab * kCandidateBytes<U>;
  return (static_cast<int64_t>(0.0225 * static_cast<double>(bytes)) / slab + 24) * slab;
}

// Where keys of one rank lie: the keys base + [0, 2^width), `rank` counted from the largest of them, from 1.
template <class U>
struct Interval {
  U base;
  int width;
  int64_t rank;
  int shift() const { return width > kBinBits<U> ? width - kBinBits<U> : 0; }
  // Narrows to the bin that holds the rank.
  void narrow(const uint64_t* counts) {
    int64_t bin = (int64_t{1} << (width - shift())) - 1;
    for (; bin > 0 && static_cast<int64_t>(counts[bin]) < rank; --bin) rank -= static_cast<int64_t>(counts[bin]);
    base = static_cast<U>(base + (static_cast<U>(bin) << shift()));
    width = shift();
  }
};

template <class U, class Source>
class Selection {
 public:
  Selection(const Source& source, DType dtype, int64_t keep, uint8_t* const* bits, int64_t* nan_count, void* scratch,
            int64_t scratch_bytes, const Pool& pool)
      : source_(source), keep_(keep), bits_(bits), nan_count_(nan_count), loops_(loops_for<U>()), rule_(rule_for<U>(dtype)) {
    chunks_ = make_chunks(source.tensors(), [&](int t) { return source.numel(t); }, kChunk);
    for (int t = 0; t < source.tensors(); ++t) numel_ += source.numel(t);
    pool_ = pool.for_elements(source.work());
    histograms_ = histogram_workers<U>(pool_.threads);
    totals_ = static_cast<uint64_t*>(scratch);
    local_ = reinterpret_cast<uint32_t*>(totals_ + kBins<U>);
    room_ = static_cast<char*>(scratch) + histogram_bytes<U>(pool_.threads);
    room_bytes_ = scratch_bytes - histogram_bytes<U>(pool_.threads);
  }

  TopkPath run(bool force_radix) {
    std::fill_n(nan_count_, source_.tensors(), int64_t{0});
    if (keep_ == 0 || keep_ == numel_) {
      write(rule_.nan, 0);  // no key is above NaN's: no bits, and the NaNs counted
      if (keep_) fill_all();
      return TopkPath::radix;
    }
    bool bracketed = sizeof(U) > 2 && !force_radix && numel_ >= Source::kBracketFrom;
    if (bracketed && bracket()) return TopkPath::bracket;
    Interval<U> all{0, kKeyBits<U>, keep_};
    while (all.width > 0) {
      count([&](int worker, int64_t i) {
        source_.blocks(chunks_[i], [&](const U* p, int64_t n, int64_t) {
          loops_.histogram(p, n, rule_, all.base, all.width, all.shift(), local_ + worker * kBins<U>);
        });
        return chunks_[i].count;
      }, static_cast<int64_t>(chunks_.size()), int64_t{1} << (all.width - all.shift()));
      all.narrow(totals_);
    }
    write(all.base, all.rank);
    return bracketed ? TopkPath::bracket_missed : TopkPath::radix;
  }

 private:
  uint8_t* bits(const Chunk& c) const { return bits_[c.tensor] + c.begin / 8; }

  // Sums one histogram over `items` into totals_[0, bins): body(worker, item) counts into its worker's own and returns how many.
  template <class Body>
  void count(const Body& body, int64_t items, int64_t bins) {
    std::fill_n(totals_, bins, uint64_t{0});
    std::fill_n(local_, histograms_ * kBins<U>, 0u);
    std::vector<int64_t> pending(histograms_, 0);
    auto flush = [&](int worker) {
      uint32_t* mine = local_ + worker * kBins<U>;
      for (int64_t b = 0; b < bins; ++b)
        if (mine[b]) __atomic_fetch_add(&totals_[b], uint64_t{mine[b]}, __ATOMIC_RELAXED);
      std::fill_n(mine, bins, 0u);
      pending[worker] = 0;
    };
    for_each_item(pool_, items, histograms_, [&](int worker, int64_t i) {
      pending[worker] += body(worker, i);
      if (pending[worker] > int64_t{1} << 31) flush(worker);  // 32-bit counts stay exact
    });
    for (int worker = 0; worker < histograms_; ++worker) flush(worker);
  }

  // Writes all bits: keys above `threshold`, and the first `take` equal to it.
  void write(U threshold, int64_t take) {
    std::vector<int64_t> equal(chunks_.size(), 0);
    for_each_item(pool_, static_cast<int64_t>(chunks_.size()), [&](int, int64_t i) {
      const Chunk& c = chunks_[i];
      U largest = 0;
      source_.blocks(c, [&](const U* p, int64_t n, int64_t at) {
        loops_.write_greater(p, n, rule_, threshold, bits(c) + at / 8, &equal[i], &largest);
      });
      note_nan(c, largest);
    });
    for (int64_t& n : equal) {
      n = std::min(n, take);
      take -= n;
    }
    for_each_item(pool_, static_cast<int64_t>(chunks_.size()), [&](int, int64_t i) {
      const Chunk& c = chunks_[i];
      int64_t left = equal[i];
      if (left == 0) return;
      source_.blocks(c, [&](const U* p, int64_t n, int64_t at) {
        if (left == 0) return;
        uint8_t* out = bits(c) + at / 8;
        int64_t before = set_bits(out, n);
        loops_.take_equal(p, n, rule_, threshold, left, out);
        left -= set_bits(out, n) - before;
      });
    });
  }

  static int64_t set_bits(const uint8_t* bits, int64_t n) {
    int64_t count = 0;
    for (int64_t b = 0; b < (n + 7) / 8; ++b) count += __builtin_popcount(bits[b]);
    return count;
  }

  void note_nan(const Chunk& c, U largest) {
    if (largest < rule_.nan) return;
    int64_t count = 0;
    source_.blocks(c, [&](const U* p, int64_t n, int64_t) { count += loops_.count_from(p, n, rule_, rule_.nan); });
    __atomic_fetch_add(&nan_count_[c.tensor], count, __ATOMIC_RELAXED);
  }

  void fill_all() {
    for (int t = 0; t < source_.tensors(); ++t) {
      int64_t n = source_.numel(t);
      if (n == 0) continue;
      std::memset(bits_[t], 0xff, static_cast<size_t>(n / 8));
      if (n % 8) bits_[t][n / 8] = static_cast<uint8_t>((1u << (n % 8)) - 1);
    }
  }

  // Runs of kRun elements spread evenly, each at a pseudo-random cache line of its stretch: `runs` * kRun keys.
  void draw_sample(U* sample, int64_t runs) {
    std::vector<int64_t> starts;
    int64_t before = 0;
    for (int t = 0; t < source_.tensors(); ++t) {
      starts.push_back(before);
      before += source_.numel(t);
    }
    const double stretch = static_cast<double>(numel_) / static_cast<double>(runs);
    for_each_item(pool_, kSlices, [&](int, int64_t slice) {
      struct Run {
        int tensor;
        int64_t begin;
      } batch[32];
      const int64_t last = runs * (slice + 1) / kSlices;
      for (int64_t first = runs * slice / kSlices; first < last; first += 32) {
        const int64_t count = std::min<int64_t>(32, last - first);
        for (int64_t i = 0; i < count; ++i) {  // all addresses of a batch before the first read: each is a cache miss
          const double jitter = static_cast<uint32_t>((first + i) * 2654435761u) / 4294967296.0;
          const int64_t at = std::min(static_cast<int64_t>((static_cast<double>(first + i) + jitter) * stretch), numel_ - 1);
          // The last tensor that starts at or before `at`; empty ones share their start with the next.
          const int64_t t = std::upper_bound(starts.begin(), starts.end(), at) - starts.begin() - 1;
          const int64_t last_run = std::max<int64_t>(source_.numel(static_cast<int>(t)) - kRun, 0);
          batch[i] = {static_cast<int>(t), std::min((at - starts[t]) & ~(kRun - 1), last_run)};
          source_.prefetch(batch[i].tensor, batch[i].begin);
        }
        for (int64_t i = 0; i < count; ++i) copy_run(batch[i].tensor, batch[i].begin, sample + (first + i) * kRun);
      }
    });
  }

  void copy_run(int t, int64_t begin, U* out) const {
    const int64_t n = source_.numel(t);
    if (n >= kRun)
      source_.copy(t, begin, kRun, out);
    else
      for (int64_t i = 0; i < kRun; ++i) source_.copy(t, (begin + i) % n, 1, out + i);  // tiny tensors repeat
  }

  // Counts the sample's keys in the bins of `where`.
  void count_sample(const U* sample, int64_t n, const Interval<U>& where) {
    count([&](int worker, int64_t slice) {
      const int64_t first = n * slice / kSlices, last = n * (slice + 1) / kSlices;
      loops_.histogram(sample + first, last - first, rule_, where.base, where.width, where.shift(), local_ + worker * kBins<U>);
      return last - first;
    }, kSlices, int64_t{1} << (where.width - where.shift()));
  }

  // One pass with a sampled bracket; false when it missed or overflowed, and then nothing but bits (rewritten later) was changed.
  bool bracket() {
    U low = 0, high = 0;
    {
      U* sample = reinterpret_cast<U*>(room_);
      const int64_t n = std::min<int64_t>(sample_size(numel_), room_bytes_ / static_cast<int64_t>(sizeof(U)) / kRun * kRun);
      draw_sample(sample, n / kRun);
      const double kept = static_cast<double>(keep_) / static_cast<double>(numel_);
      // Neighbours in a run may resemble each other; a miss costs a second pass, never exactness.
      const double spread = kSigmas * std::sqrt(kept * (1 - kept) * static_cast<double>(n)) + 2;
      const auto first = static_cast<int64_t>(kept * static_cast<double>(n) - spread);
      const auto last = static_cast<int64_t>(kept * static_cast<double>(n) + spread) + 1;
      Interval<U> above{0, kKeyBits<U>, std::max<int64_t>(first, 1)}, below{0, kKeyBits<U>, std::min(last, n)};
      count_sample(sample, n, above);
      for (Interval<U>* each : {&above, &below}) each->narrow(totals_);
      for (Interval<U>* each : {&above, &below}) {  // two levels: 24 bits of the key are close enough
        count_sample(sample, n, *each);
        each->narrow(totals_);
      }
      high = first < 1 ? rule_.nan : static_cast<U>(above.base + ((U{1} << above.width) - 1));
      low = last > n ? 0 : below.base;
    }
    struct Found {
      U* keys;
      uint16_t* index;
      int64_t count;
    };
    const int64_t slabs = room_bytes_ / (kSlab * kCandidateBytes<U>);
    U* all_keys = reinterpret_cast<U*>(room_);
    uint16_t* all_index = reinterpret_cast<uint16_t*>(all_keys + slabs * kSlab);
    struct Slab {
      int64_t id = -1, used = kSlab;
      char pad[48];  // one cache line a worker
    };
    std::vector<Slab> mine(pool_.threads);
    std::vector<Found> found(chunks_.size());
    std::atomic<int64_t> next_slab{0}, greater{0};
    std::atomic<bool> overflow{false};
    for_each_item(pool_, static_cast<int64_t>(chunks_.size()), static_cast<int>(slabs / 2), [&](int worker, int64_t i) {
      const Chunk& c = chunks_[i];
      Slab& slab = mine[worker];
      for (bool fresh = false; !overflow.load(std::memory_order_relaxed); fresh = true) {
        if (kSlab - slab.used < 2 * kScanSlack || fresh) {
          slab = {next_slab.fetch_add(1), 0, {}};
          if (slab.id >= slabs) overflow = true;
          if (overflow) break;
        }
        bool whole = slab.used == 0;
        U* keys = all_keys + slab.id * kSlab + slab.used;
        uint16_t* index = all_index + slab.id * kSlab + slab.used;
        int64_t count = 0, above = 0;
        bool fits = true;
        U largest = 0;
        source_.blocks(c, [&](const U* p, int64_t n, int64_t at) {
          if (!fits) return;
          int64_t more = loops_.scan(p, n, rule_, low, high, bits(c) + at / 8, static_cast<uint32_t>(at), keys + count, index + count,
                                     kSlab - slab.used - count, &above, &largest);
          fits = more >= 0;
          count += std::max<int64_t>(more, 0);
        });
        if (fits) {
          slab.used += count;
          greater += above;
          found[i] = {keys, index, count};
          if (largest >= rule_.nan) overflow = true;  // NaNs are rare and are counted by the exact path
          break;
        }
        if (whole) overflow = true;
      }
    });
    if (overflow) return false;
    int64_t candidates = 0;
    for (const Found& f : found) candidates += f.count;
    int64_t rank = keep_ - greater;
    if (rank < 0 || rank > candidates) return false;
    if (rank == 0) return true;

    Interval<U> within{low, kKeyBits<U>, rank};
    while (within.width > 1 && (static_cast<uint64_t>(high - low) >> (within.width - 1)) == 0) --within.width;
    const int64_t items = static_cast<int64_t>(found.size());
    while (within.width > 0) {
      count([&](int worker, int64_t i) {
        loops_.histogram(found[i].keys, found[i].count, rule_, within.base, within.width, within.shift(), local_ + worker * kBins<U>);
        return found[i].count;
      }, items, int64_t{1} << (within.width - within.shift()));
      within.narrow(totals_);
    }
    std::vector<int64_t> take(found.size(), 0);
    for_each_item(pool_, items, [&](int, int64_t i) {
      const Found f = found[i];  // copies: stores through uint8_t* could alias anything else
      const U threshold = within.base;
      uint8_t* const out = bits(chunks_[i]);
      int64_t same = 0;
      for (int64_t j = 0; j < f.count; ++j) {
        const uint32_t at = f.index[j];
        const U key = f.keys[j];
        out[at >> 3] = static_cast<uint8_t>(out[at >> 3] | (key > threshold) << (at & 7));
        same += key == threshold;
      }
      take[i] = same;
    });
    for (int64_t i = 0, left = within.rank; i < items && left > 0; ++i)
      for (int64_t j = 0; take[i] > 0 && left > 0 && j < found[i].count; ++j) {
        if (found[i].keys[j] != within.base) continue;
        uint32_t at = found[i].index[j];
        bits(chunks_[i])[at >> 3] |= static_cast<uint8_t>(1u << (at & 7));
        --left;
      }
    return true;
  }

  const Source& source_;
  int64_t keep_;
  uint8_t* const* bits_;
  int64_t* nan_count_;
  Pool pool_;
  const TopkLoops<U>& loops_;
  KeyRule<U> rule_;
  std::vector<Chunk> chunks_;
  int64_t numel_ = 0;
  int histograms_;
  uint64_t* totals_;
  uint32_t* local_;
  char* room_;
  int64_t room_bytes_;
};

}  // namespace
}  // namespace acdc
