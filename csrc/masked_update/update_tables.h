// Tables of tensors as arguments of the masked updates' kernels, and which of the two kernels takes a tensor.
#pragma once
#include "common/cuda.h"
#include "common/layout.h"
#include "masked_update/masked_update.h"

namespace acdc {

constexpr int kRefs = 2 + kMaxStates;  // parameter, gradient, states

// How an update walks a tensor: in the order of the parameter's memory, along axes that were joined wherever parameter, gradient, states
// and mask bits allow it.
struct UpdateWalk {
  int dims;  // 0: everything lies one after another
  int64_t sizes[kLayoutDims];
  int64_t strides[kRefs][kLayoutDims];  // in elements
  int64_t logical[kLayoutDims];         // of the index that counts mask bits
};

// False if more than kLayoutDims axes are left.
inline bool make_walk(const UpdateTensor& t, UpdateWalk* walk) {
  *walk = UpdateWalk{};
  const TensorRef* refs[kRefs] = {&t.param, &t.grad, &t.states[0], &t.states[1], &t.states[2]};
  bool contiguous = true;
  for (const TensorRef* r : refs) contiguous &= r->data == nullptr || r->contiguous;
  if (contiguous) return true;

  struct Axis {
    int64_t size, logical, strides[kRefs];
  };
  Axis axes[kMaxDims];
  int n = 0;
  int64_t logical = 1;
  for (int d = t.param.dims - 1; d >= 0; --d) {
    const int64_t size = t.param.sizes[d];
    if (size == 1) continue;
    Axis axis{size, t.bits ? logical : 0, {}};
    for (int r = 0; r < kRefs; ++r) axis.strides[r] = refs[r]->data ? refs[r]->strides[d] : 0;
    logical *= size;
    int at = n++;  // outer axes first; those with the same stride stay in order
    for (; at > 0 && axes[at - 1].strides[0] <= axis.strides[0]; --at) axes[at] = axes[at - 1];
    axes[at] = axis;
  }
  int left = 0;
  for (int a = 0; a < n; ++a) {
    Axis axis = axes[a];
    bool joins = left > 0;
    if (joins) {
      const Axis& outer = axes[left - 1];
      joins = outer.logical == axis.logical * axis.size;
      for (int r = 0; r < kRefs; ++r) joins &= outer.strides[r] == axis.strides[r] * axis.size;
    }
    if (joins) axis.size *= axes[--left].size;
    axes[left++] = axis;
  }
  n = left;

  if (n > kLayoutDims) return false;
  if (n == 0) return true;
  bool flat = n == 1 && (t.bits == nullptr || axes[0].logical == 1);
  for (int r = 0; r < kRefs; ++r) flat &= refs[r]->data == nullptr || axes[0].strides[r] == 1;
  if (flat) return true;
  walk->dims = n;
  for (int d = 0; d < n; ++d) {
    walk->sizes[d] = axes[d].size;
    walk->logical[d] = axes[d].logical;
    for (int r = 0; r < kRefs; ++r) walk->strides[r][d] = axes[d].strides[r];
  }
  return true;
}

// A tensor of an update with kStates states at most.
template <int kStates>
struct UpdateEntry {
  void* param;
  const void* grad;
  void* states[kStates];
  const uint8_t* bits;
  int64_t numel;
  int32_t tensor;  // its number among all
  int32_t zeros_kept;

  explicit UpdateEntry(const UpdateTensor& t, int number)
      : param(t.param.data), grad(t.grad.data), bits(t.bits), numel(t.param.numel), tensor(number), zeros_kept(t.bits && t.zeros_kept) {
    for (int k = 0; k < kStates; ++k) states[k] = t.states[k].data;
  }
  UpdateEntry() = default;
};

template <int kStates>
struct WalkedEntry : UpdateEntry<kStates> {
  int32_t dims;
  int64_t sizes[kLayoutDims], logical[kLayoutDims], strides[2 + kStates][kLayoutDims];

  WalkedEntry(const UpdateTensor& t, int number, const UpdateWalk& walk) : UpdateEntry<kStates>(t, number), dims(walk.dims) {
    std::memcpy(sizes, walk.sizes, sizeof(sizes));
    std::memcpy(logical, walk.logical, sizeof(logical));
    for (int r = 0; r < 2 + kStates; ++r) std::memcpy(strides[r], walk.strides[r], sizeof(strides[r]));
  }
  WalkedEntry() = default;
};

struct FirstChunk {
  int32_t first_chunk;
};

// What chunks are found in lies apart from the entries, to be near in constant memory.
template <class Entry, int kCapacity>
struct UpdateTable {
  int32_t count, chunks;
  FirstChunk starts[kCapacity];
  Entry entries[kCapacity];
};

constexpr int kTableBytes = 31 * 1024;  // of the 32764 that a kernel's arguments may take

template <class Entry>
constexpr int kLargeTable = (kTableBytes - 8) / static_cast<int>(sizeof(Entry) + sizeof(FirstChunk));

}  // namespace acdc
