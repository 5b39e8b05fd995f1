// How kernels get threads: a function pointer of torch's parallel_for (or a std::thread one in tests), so there is one pool.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>

#include "common/ieee.h"

namespace acdc {

struct Pool {
  // Calls body(first, last, context) over disjoint parts of [begin, end), each at least `grain` long.
  void (*parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
  int threads;

  // The same pool with no more threads than `elements` are worth waking.
  Pool for_elements(int64_t elements) const {
    const int64_t worth = elements / 32768;
    return {parallel_for, worth < 1 ? 1 : worth < threads ? static_cast<int>(worth) : threads};
  }
};

// f(worker, item) for every item of [0, items); workers are numbered from 0 and take items as they become free. All compute with the
// caller's treatment of denormals; what one of them throws is thrown here, once all have stopped.
template <class F>
void for_each_item(const Pool& pool, int64_t items, int max_workers, const F& f) {
  int64_t workers = pool.threads < max_workers ? pool.threads : max_workers;
  if (workers > items) workers = items;
  if (workers <= 1) {
    for (int64_t i = 0; i < items; ++i) f(0, i);
    return;
  }
  struct Shared {
    const F* f;
    int64_t items;
    FloatMode mode;
    std::atomic<int64_t> next;
    std::atomic<bool> failed;
    std::exception_ptr error;
  } shared{&f, items, FloatMode::here(), {0}, {false}, nullptr};
  pool.parallel_for(0, workers, 1, [](int64_t first, int64_t last, void* context) {
    auto& s = *static_cast<Shared*>(context);
    const ScopedFloatMode as_caller(s.mode);
    for (int64_t worker = first; worker < last; ++worker) try {
        for (int64_t i; (i = s.next.fetch_add(1, std::memory_order_relaxed)) < s.items;) (*s.f)(static_cast<int>(worker), i);
      } catch (...) {
        s.next.store(s.items, std::memory_order_relaxed);
        if (!s.failed.exchange(true)) s.error = std::current_exception();
      }
  }, &shared);
  if (shared.error) std::rethrow_exception(shared.error);
}

template <class F>
void for_each_item(const Pool& pool, int64_t items, const F& f) {
  for_each_item(pool, items, pool.threads, f);
}

}  // namespace acdc
