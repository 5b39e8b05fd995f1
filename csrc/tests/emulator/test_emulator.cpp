// The emulator itself: what CUDA promises holds in every order, and what it forbids or leaves open shows.
#include <algorithm>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/cuda.h"
#include "common/layout.h"
#include "common/upload.h"
#include "tests/testing.h"

using namespace acdc;

namespace {

template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const std::runtime_error& e) {
    return e.what();
  }
  return "";
}

void in_order(int order) { setenv("ACDC_EMULATOR_ORDER", std::to_string(order).c_str(), 1); }

constexpr int kOrders[] = {0, 1, 2, 3, 4, 5};

struct Shared {
  int of[64];
};

// Each thread reads what its right neighbour wrote.
__global__ void neighbours(const int* in, int* out, bool barrier) {
  ACDC_SHARED(Shared, shared);
  const unsigned t = threadIdx.x;
  shared.of[t] = in[blockIdx.x * 64 + t];
  if (barrier) __syncthreads();
  out[blockIdx.x * 64 + t] = shared.of[(t + 1) % 64];
}

void barriers_order_threads_and_missing_ones_show() {
  std::vector<int> in(192), out(192), want(192);
  for (int i = 0; i < 192; ++i) in[i] = 1000 + i;
  for (int i = 0; i < 192; ++i) want[i] = in[i / 64 * 64 + (i % 64 + 1) % 64];
  std::set<std::vector<int>> racy;
  for (int order : kOrders) {
    in_order(order);
    ACDC_LAUNCH(neighbours, 3, 64, nullptr, in.data(), out.data(), true);
    CHECK(out == want);
    ACDC_LAUNCH(neighbours, 3, 64, nullptr, in.data(), out.data(), false);
    CHECK(out != want);
    racy.insert(out);
  }
  CHECK(racy.size() > 3);
}

__global__ void lanes(int* out) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  int sum = lane;
  for (int by = 16; by; by >>= 1) sum += __shfl_xor_sync(kAllLanes, sum, by);
  int before = 1;
  for (unsigned by = 1; by < 32; by <<= 1) {
    const int other = __shfl_up_sync(kAllLanes, before, by);
    if (lane >= static_cast<int>(by)) before += other;
  }
  const unsigned odd = __ballot_sync(kAllLanes, lane & 1);
  int half = -1;
  if (lane < 16) half = __shfl_sync(0xffffu, lane, 3);  // half a warp meets alone
  __syncwarp();
  const unsigned same = __match_any_sync(kAllLanes, lane / 8);
  out[threadIdx.x] = sum == 496 && before == lane + 1 && odd == 0xaaaaaaaau && half == (lane < 16 ? 3 : -1) && same == 0xffu << lane / 8 * 8 &&
                     __shfl_down_sync(kAllLanes, lane, 4) == (lane < 28 ? lane + 4 : lane);
}

// Warps vote between a shared store and another warp's load: in rounds no warp is ever a vote ahead, so only run-ahead orders tell.
__global__ void votes_hide_a_missing_barrier(int* out) {
  ACDC_SHARED(Shared, shared);
  shared.of[threadIdx.x] = 7;
  for (int i = 0; i < 3; ++i) (void)__any_sync(kAllLanes, 1);
  out[threadIdx.x] = shared.of[threadIdx.x ^ 32];
}

void warps_that_run_ahead_show_what_votes_hide() {
  std::vector<int> out(64);
  for (int order : {0, 1, 3, 5}) {
    in_order(order);
    ACDC_LAUNCH(votes_hide_a_missing_barrier, 1, 64, nullptr, out.data());
    CHECK(out == std::vector<int>(64, 7));
  }
  for (int order : {2, 4, 6}) {
    in_order(order);
    ACDC_LAUNCH(votes_hide_a_missing_barrier, 1, 64, nullptr, out.data());
    CHECK(std::count(out.begin(), out.end(), 7) == 32);
  }
}

void lanes_exchange_values() {
  for (int order : kOrders) {
    in_order(order);
    std::vector<int> out(96, 0);
    ACDC_LAUNCH(lanes, 1, 96, nullptr, out.data());
    CHECK(out == std::vector<int>(96, 1));
  }
}

__global__ void half_waits() {
  if (threadIdx.x < 32) __syncthreads();
  if (threadIdx.x >= 32) __syncwarp();
  if (threadIdx.x >= 32) (void)__ballot_sync(threadIdx.x == 40 ? 0xffu : kAllLanes, 1);
}
__global__ void others_ended() {
  if (threadIdx.x & 1) return;
  __syncwarp();
}
__global__ void in_two_ways() {
  if (threadIdx.x == 3) (void)__ballot_sync(kAllLanes, 1);
  else (void)__shfl_sync(kAllLanes, 1, 0);
}
__global__ void from_outside() {
  if (threadIdx.x < 8) (void)__shfl_down_sync(0xffu, 1, 1);
}
struct Large {
  char bytes[40000];
};
__global__ void takes_much(ACDC_CONSTANT(Large) much) { (void)much; }
__global__ void shares_much() {
  ACDC_SHARED(Large, a);
  ACDC_SHARED(Large, b);
  (void)a, (void)b;
}
__global__ void who_wrote_it(unsigned* out) {
  ACDC_SHARED(unsigned, never_written);
  out[threadIdx.x] = never_written;
}
// The last block to finish sees what all have written.
__global__ void last_block(unsigned* ticket, unsigned* sum, unsigned* out) {
  ACDC_SHARED(bool, last);
  atomicAdd(sum, blockIdx.x * 64 + threadIdx.x);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (last && threadIdx.x == 0) *out = *sum;
}

void mistakes_are_errors() {
  for (int order : kOrders) {
    in_order(order);
    CHECK(error_of([] { ACDC_LAUNCH(half_waits, 1, 64, nullptr); }).find("different masks") != std::string::npos);
    CHECK(error_of([] { ACDC_LAUNCH(others_ended, 1, 32, nullptr); }).find("lanes that have ended") != std::string::npos);
    CHECK(error_of([] { ACDC_LAUNCH(in_two_ways, 1, 32, nullptr); }).find("different operations") != std::string::npos);
    CHECK(error_of([] { ACDC_LAUNCH(from_outside, 1, 32, nullptr); }).find("isn't in its mask") != std::string::npos);
    std::vector<unsigned> out(32);
    ACDC_LAUNCH(who_wrote_it, 2, 32, nullptr, out.data());
    CHECK(out == std::vector<unsigned>(32, 0xa5a5a5a5u));
    unsigned ticket = 0, sum = 0, seen = 0;
    ACDC_LAUNCH(last_block, 5, 64, nullptr, &ticket, &sum, &seen);
    CHECK(seen == 320 * 319 / 2);
  }
  CHECK(error_of([] { ACDC_LAUNCH(half_waits, 1, 48, nullptr); }).find("multiple of 32") != std::string::npos);
  CHECK(error_of([] { ACDC_LAUNCH(shares_much, 1, 32, nullptr); }).find("48 KiB of shared memory") != std::string::npos);
  CHECK(error_of([] { ACDC_LAUNCH(takes_much, 1, 32, nullptr, Large{}); }).find("at most 32764 bytes") != std::string::npos);
  CHECK(error_of([] { ACDC_LAUNCH(others_ended, dim3(1, 65536), 32, nullptr); }).find("65535") != std::string::npos);
}

__global__ void set_one(uint8_t* mask, int64_t at, uint32_t bits) { set_bits(mask, at + threadIdx.x, bits << threadIdx.x % 2); }

void bits_are_set_across_words() {
  alignas(4) uint8_t mask[12] = {};
  ACDC_LAUNCH(set_one, 1, 32, nullptr, mask, int64_t{20}, 1u);
  for (int i = 0; i < 96; ++i) CHECK((mask[i / 8] >> i % 8 & 1) == (i >= 20 && i <= 52 && i % 2 == 0));
}

struct Entry {
  int64_t a;
  uint32_t b[3], c;
};

void tables_of_any_size_arrive() {
  for (int order : {0, 1, 7})
    for (int count : {1, 7, 170, 3000}) {
      in_order(order);
      std::vector<Entry> table(static_cast<size_t>(count)), got(static_cast<size_t>(count) + 1, Entry{-1, {1, 1, 1}, 1});
      for (int i = 0; i < count; ++i) table[i] = {i * 1000000007ll, {unsigned(i), unsigned(i + 1), unsigned(i + 2)}, unsigned(i * 7)};
      CHECK(upload(table.data(), count, got.data(), nullptr) == cudaSuccess);
      CHECK(std::memcmp(got.data(), table.data(), sizeof(Entry) * table.size()) == 0);
      CHECK(got.back().a == -1 && got.back().c == 1);
    }
}

void layouts_find_every_element() {
  struct Case {
    std::vector<int64_t> sizes, strides;
    int dims;
  };
  const Case cases[] = {{{2, 3, 4}, {12, 4, 1}, 0}, {{2, 3, 4}, {24, 8, 2}, 1},  {{2, 3, 4}, {1, 2, 6}, 3},       {{4, 1, 5}, {5, 77, 1}, 0},
                        {{}, {}, 0},                {{3, 4}, {0, 1}, 2},         {{2, 3, 2, 2}, {12, 1, 6, 3}, 3}, {{1, 1}, {9, 9}, 0}};
  for (const Case& c : cases) {
    TensorRef t{nullptr, 1, c.sizes.data(), c.strides.data(), static_cast<int>(c.sizes.size()), false};
    for (int64_t s : c.sizes) t.numel *= s;
    Layout layout;
    CHECK(make_layout(t, &layout));
    CHECK(layout.dims == c.dims);
    for_each_run(t, 0, t.numel, [&](int64_t offset, int64_t stride, int64_t length, int64_t at) {
      for (int64_t i = 0; i < length; ++i) CHECK(offset_of(layout, at + i) == offset + i * stride);
    });
  }
  // Too many elements for 32-bit arithmetic.
  const int64_t sizes[] = {3, int64_t{1} << 31, 5}, strides[] = {1, 21, 3};
  Layout large;
  CHECK(make_layout({nullptr, sizes[0] * sizes[1] * sizes[2], sizes, strides, 3, false}, &large) && large.dims == 3);
  CHECK(offset_of(large, (2 * sizes[1] + 1234567890) * 5 + 4) == 2 + 1234567890ll * 21 + 12);
  for (int64_t a : {int64_t{0}, int64_t{7}, int64_t{0xffffffff}, int64_t{1} << 32, int64_t{1} << 40 | 12345, INT64_MAX})
    for (int64_t b : {int64_t{1}, int64_t{3}, int64_t{0xffffffff}, int64_t{1} << 32, int64_t{1} << 33 | 7, INT64_MAX}) CHECK(divide(a, b) == a / b);
  std::vector<int64_t> many(9, 2), odd(9);
  for (int i = 0; i < 9; ++i) odd[i] = 3 << i;
  CHECK(!make_layout({nullptr, 512, many.data(), odd.data(), 9, false}, &large));
}

}  // namespace

int main() {
  barriers_order_threads_and_missing_ones_show();
  warps_that_run_ahead_show_what_votes_hide();
  lanes_exchange_values();
  mistakes_are_errors();
  bits_are_set_across_words();
  tables_of_any_size_arrive();
  layouts_find_every_element();
  std::puts("test_emulator passed");
}
