// The two kernels of the masked updates: one for tensors that lie one element after another, sixteen bytes at a time, and one for all
// others, an element at a time. An Update says what happens to an element: kStates; Numbers<C>, its hyper-parameters in the precision C,
// with states (how many there are), reads (of how many the old values matter) and device; prepare; step.
#pragma once
#include <vector>

#include "common/table.h"
#include "masked_update/masked_update_kernels.h"
#include "masked_update/update_elements.h"

namespace acdc {
namespace {

constexpr unsigned kUpdateThreads = block_threads(256);

// How the contiguous kernel cuts a tensor of Ts with states of Ss.
template <class Update, class T, class S>
struct Cut {
  static constexpr int kElements = 16 / static_cast<int>(sizeof(T));     // of a vector
  static constexpr int kWide = static_cast<int>(sizeof(S) / sizeof(T));  // vectors of a state for one of the parameter
  static constexpr int kAtOnce = Update::kStates == 1 ? 2 : 1;           // vectors that a thread holds: more would cost blocks
  static constexpr int kTurns = 8 / kAtOnce;
  static constexpr int kSingly = Update::kStates == 1 ? 4 : 2;           // elements, where vectors can't be
  static constexpr int kChunk = static_cast<int>(kUpdateThreads) * 8 * kElements;
  static constexpr int kBlocks = kElements == 4 ? 5 : 4;                 // of a multiprocessor, within its registers
  static_assert(kChunk % 8 == 0, "a chunk's mask bits begin a byte");
};

// A block a chunk, a thread eight vectors, which are a block apart. Their mask bytes are read before all else; where one is 0, nothing else
// is of its eight elements.
template <class Update, class T, class S, int kCapacity>
__global__ void __launch_bounds__(kUpdateThreads, Cut<Update, T, S>::kBlocks)
    update_contiguous(ACDC_CONSTANT(UpdateTable<UpdateEntry<Update::kStates>, kCapacity>) table,
                      ACDC_CONSTANT(typename Update::template Numbers<Compute<T>>) numbers) {
  using C = Compute<T>;
  using To = Cut<Update, T, S>;
  constexpr int kStates = Update::kStates, kElements = To::kElements, kWide = To::kWide, kAtOnce = To::kAtOnce;
  const int64_t entry = find_entry(table.starts, table.count, blockIdx.x);
  const UpdateEntry<kStates>& t = table.entries[entry];
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - table.starts[entry].first_chunk) * To::kChunk;
  const int count = static_cast<int>(t.numel - begin < To::kChunk ? t.numel - begin : To::kChunk);
  T* param = static_cast<T*>(t.param) + begin;
  const T* grad = static_cast<const T*>(t.grad) + begin;
  S* states[kStates];
  bool aligned = is_aligned16(param) && is_aligned16(grad);
  ACDC_UNROLLED
  for (int k = 0; k < kStates; ++k) {
    states[k] = k < numbers.states ? static_cast<S*>(t.states[k]) + begin : nullptr;
    aligned &= is_aligned16(states[k]);
  }
  const int whole = aligned ? count / kElements * kElements : 0;
  const int step = static_cast<int>(blockDim.x) * kElements;

  uint64_t masks = ~uint64_t{0};
  int i = static_cast<int>(threadIdx.x) * kElements;
  if (t.bits) {
    masks = 0;
    ACDC_UNROLLED
    for (int v = 0; v < 8; ++v)
      if (i + v * step < whole) masks |= static_cast<uint64_t>(t.bits[(begin + i + v * step) >> 3]) << (8 * v);
  }
  if (found_inf(numbers.device)) return;
  const auto h = Update::prepare(numbers, t.tensor);

  ACDC_ROLLED
  for (int turn = 0; turn < To::kTurns && i < whole; ++turn, i += kAtOnce * step) {
    uint32_t kept[kAtOnce];
    Bytes16 p[kAtOnce], g[kAtOnce], s[kAtOnce][kStates][kWide];
    ACDC_UNROLLED
    for (int u = 0; u < kAtOnce; ++u) {
      const int at = i + u * step;
      kept[u] = at < whole ? static_cast<uint32_t>(masks >> (8 * u)) & 0xff : 0;
      p[u] = g[u] = Bytes16{};
      if (kept[u]) {
        p[u] = *reinterpret_cast<const Bytes16*>(param + at);
        g[u] = *reinterpret_cast<const Bytes16*>(grad + at);
      }
      ACDC_UNROLLED
      for (int k = 0; k < kStates; ++k) {
        ACDC_UNROLLED
        for (int w = 0; w < kWide; ++w) {
          s[u][k][w] = Bytes16{};
          if (kept[u] && k < h.reads) s[u][k][w] = reinterpret_cast<const Bytes16*>(states[k] + at)[w];
        }
      }
    }
    masks >>= 8 * kAtOnce;
    ACDC_UNROLLED
    for (int u = 0; u < kAtOnce; ++u) {
      const int at = i + u * step;
      if (at >= whole || (kept[u] == 0 && t.zeros_kept)) continue;
      if (kept[u]) {
        ACDC_UNROLLED
        for (int j = 0; j < kElements; ++j) {
          constexpr int kOf = kElements / kWide;  // elements of a state's vector
          C x = element(p[u], j, T{}), state[kStates];
          ACDC_UNROLLED
          for (int k = 0; k < kStates; ++k) state[k] = element(s[u][k][j / kOf], j % kOf, S{});
          Update::step(h, x, element(g[u], j, T{}), state);
          const bool keep = kept[u] >> ((at & 7) + j) & 1;
          set_element(p[u], j, keep ? x : C(0), T{});
          ACDC_UNROLLED
          for (int k = 0; k < kStates; ++k) set_element(s[u][k][j / kOf], j % kOf, keep ? state[k] : C(0), S{});
        }
      }
      *reinterpret_cast<Bytes16*>(param + at) = p[u];
      ACDC_UNROLLED
      for (int k = 0; k < kStates; ++k) {
        if (k >= h.states) continue;
        ACDC_UNROLLED
        for (int w = 0; w < kWide; ++w) reinterpret_cast<Bytes16*>(states[k] + at)[w] = s[u][k][w];
      }
    }
  }
  if (whole == count) return;
  update_elements<To::kSingly, T, S, Update, C>(t, h, whole, count, [&](int at, int64_t* offsets) {
    ACDC_UNROLLED
    for (int r = 0; r < 2 + kStates; ++r) offsets[r] = begin + at;
    return begin + at;
  });
}

constexpr int kWalkedChunk = static_cast<int>(kUpdateThreads) * 8;

// A block a chunk of the parameter's memory order.
template <class Update, class T, class S, int kCapacity>
__global__ void __launch_bounds__(kUpdateThreads)
    update_walked(ACDC_CONSTANT(UpdateTable<WalkedEntry<Update::kStates>, kCapacity>) table,
                  ACDC_CONSTANT(typename Update::template Numbers<Compute<T>>) numbers) {
  constexpr int kStates = Update::kStates, kAtOnce = kStates == 1 || sizeof(T) < 8 ? 2 : 1;
  const int64_t entry = find_entry(table.starts, table.count, blockIdx.x);
  const WalkedEntry<kStates>& t = table.entries[entry];
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - table.starts[entry].first_chunk) * kWalkedChunk;
  const int count = static_cast<int>(t.numel - begin < kWalkedChunk ? t.numel - begin : kWalkedChunk);
  if (found_inf(numbers.device)) return;
  const auto h = Update::prepare(numbers, t.tensor);
  auto visit = [&](auto index, int64_t* at) {
    int64_t bit = 0;
    for (int r = 0; r < 2 + kStates; ++r) at[r] = 0;
    for (int d = t.dims - 1; d >= 0; --d) {
      auto coordinate = index;
      if (d > 0) {
        const auto size = static_cast<decltype(index)>(t.sizes[d]), next = index / size;
        coordinate = index - next * size;
        index = next;
      }
      const int64_t c = static_cast<int64_t>(coordinate);
      bit += c * t.logical[d];
      ACDC_UNROLLED
      for (int r = 0; r < 2 + kStates; ++r) at[r] += c * t.strides[r][d];
    }
    return bit;
  };
  update_elements<kAtOnce, T, S, Update, Compute<T>, kStates>(t, h, 0, count, [&](int i, int64_t* at) {
    // a division of 64 bits takes some hundred instructions
    return t.numel <= 0xffffffff ? visit(static_cast<uint32_t>(begin + i), at) : visit(static_cast<uint64_t>(begin + i), at);
  });
}

// Launches `kernel` over the entries, as many at a time as its table has room for.
template <int kCapacity, class Entry, class Kernel, class Numbers>
cudaError_t launch_entries(Kernel kernel, const std::vector<Entry>& entries, int64_t chunk, const Numbers& numbers, cudaStream_t stream) {
  UpdateTable<Entry, kCapacity> table;
  static_assert(sizeof(table) + sizeof(numbers) <= 32764, "more than the arguments of a kernel may be");
  for (size_t from = 0; from < entries.size(); from += static_cast<size_t>(table.count)) {
    int64_t chunks = 0;
    table.count = 0;
    for (; table.count < kCapacity && from + static_cast<size_t>(table.count) < entries.size(); ++table.count) {
      const Entry& entry = entries[from + static_cast<size_t>(table.count)];
      table.starts[table.count].first_chunk = static_cast<int32_t>(chunks);
      table.entries[table.count] = entry;
      chunks += (entry.numel + chunk - 1) / chunk;
    }
    const cudaError_t error = ACDC_LAUNCH(kernel, static_cast<unsigned>(chunks), kUpdateThreads, stream, table, numbers);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class Update, class T, class S>
cudaError_t launch_type(const UpdateTensor* tensors, int count, const typename Update::template Numbers<Compute<T>>& numbers, int type,
                        cudaStream_t stream) {
  using Entry = UpdateEntry<Update::kStates>;
  using Walked = WalkedEntry<Update::kStates>;
  std::vector<Entry> contiguous;
  std::vector<Walked> walked;
  for (int i = 0; i < count; ++i) {
    const UpdateTensor& t = tensors[i];
    if (t.param.numel == 0 || update_types(t.dtype, t.state_dtype) != type) continue;
    UpdateWalk walk;
    if (!make_walk(t, &walk)) return cudaErrorInvalidValue;
    if (walk.dims == 0)
      contiguous.push_back(Entry(t, i));
    else
      walked.push_back(Walked(t, i, walk));
  }
  constexpr int kSmall = 32, kLarge = kLargeTable<Entry>, kWalked = kLargeTable<Walked>;
  constexpr int64_t kChunk = Cut<Update, T, S>::kChunk;
  const cudaError_t error = contiguous.size() <= kSmall
                                ? launch_entries<kSmall>(update_contiguous<Update, T, S, kSmall>, contiguous, kChunk, numbers, stream)
                                : launch_entries<kLarge>(update_contiguous<Update, T, S, kLarge>, contiguous, kChunk, numbers, stream);
  if (error != cudaSuccess) return error;
  return launch_entries<kWalked>(update_walked<Update, T, S, kWalked>, walked, kWalkedChunk, numbers, stream);
}

// One launch a type and kernel. numbers_of(C{}) are the hyper-parameters in the precision C.
template <class Update, class NumbersOf>
cudaError_t launch_update(const UpdateTensor* tensors, int count, const NumbersOf& numbers_of, cudaStream_t stream) {
  const auto single = numbers_of(float{});
  cudaError_t error = launch_type<Update, float, float>(tensors, count, single, 0, stream);
  if (error == cudaSuccess) error = launch_type<Update, double, double>(tensors, count, numbers_of(double{}), 1, stream);
  if (error == cudaSuccess) error = launch_type<Update, bf16, bf16>(tensors, count, single, 2, stream);
  if (error == cudaSuccess) error = launch_type<Update, f16, f16>(tensors, count, single, 3, stream);
  if (error == cudaSuccess) error = launch_type<Update, bf16, float>(tensors, count, single, 4, stream);
  if (error == cudaSuccess) error = launch_type<Update, f16, float>(tensors, count, single, 5, stream);
  return error;
}

}  // namespace
}  // namespace acdc
