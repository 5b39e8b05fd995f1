#include "tests/emulator/cuda_emulator.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/ieee.h"

#if defined(__x86_64__)
extern "C" void acdc_emulator_switch(void** save, void* load);
// The registers that a function keeps; the kernel has no part in it, unlike in swapcontext's.
asm(R"(
.text
.globl acdc_emulator_switch
.hidden acdc_emulator_switch
.type acdc_emulator_switch, @function
acdc_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size acdc_emulator_switch, .-acdc_emulator_switch
)");
#else
#include <ucontext.h>
#endif

namespace acdc::emulator {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStack = size_t{64} << 10;
constexpr size_t kSharedBytes = size_t{48} << 10;  // what a kernel may declare
constexpr size_t kArgumentBytes = 32764;
constexpr uint64_t kCanary = 0xc0ffee5ac71f1ce5ull;
enum class State : uint8_t { ready, at_block, at_warp, done };

// A stack and the place on it where it goes on.
class Context {
 public:
#if defined(__x86_64__)
  void start(char* stack, void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t>(stack + kStack) & ~uintptr_t{15};
    void** sp = reinterpret_cast<void**>(top) - 1;  // as after a call: 8 bytes short of a multiple of 16
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--sp = nullptr;
    sp_ = sp;
  }
  static void change(Context* from, Context* to) { acdc_emulator_switch(&from->sp_, to->sp_); }

 private:
  void* sp_ = nullptr;
#else
  void start(char* stack, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  static void change(Context* from, Context* to) { swapcontext(&from->context_, &to->context_); }

 private:
  ucontext_t context_;
#endif
};

struct Fiber {
  Context context;
  State state;
  dim3 index;
  unsigned mask;
  Meeting kind;
};

struct Share {
  const char* file;
  int line;
  size_t bytes, at;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::unique_ptr<char[]> stacks;
  size_t stacks_for = 0;
  Context scheduler;
  unsigned current = 0, threads = 0;
  const std::function<void()>* body = nullptr;
  // What lanes bring to a meeting, and what they take from it: meetings end between rounds, so all of them read before the next one ends.
  std::vector<uint64_t> brought, given;
  std::vector<Share> shares;
  size_t shared_used = 0;
  std::unique_ptr<char[]> arena{new char[kSharedBytes + 16]};
  std::mt19937 random{1};
  unsigned order = 0;
  const char* mistake = nullptr;  // of the thread that has just run

  char* stack(unsigned i) { return stacks.get() + i * kStack; }
  uint64_t* canary(unsigned i) { return reinterpret_cast<uint64_t*>(stack(i)); }
};

Machine& machine() {
  static Machine m;
  return m;
}

void enter() {
  Machine& m = machine();
  (*m.body)();
  Fiber& me = m.fibers[m.current];
  me.state = State::done;
  Context::change(&me.context, &m.scheduler);
  std::abort();  // nobody goes on with a thread that is done
}

void park(State state) {
  Machine& m = machine();
  Fiber& me = m.fibers[m.current];
  me.state = state;
  Context::change(&me.context, &m.scheduler);
}

// Ends the run, from within a thread: an exception can't leave its stack.
[[noreturn]] void fail(const char* mistake) {
  machine().mistake = mistake;
  park(State::done);
  std::abort();
}

// Lets go on the lanes of a warp whose meeting is complete; whether there were any.
bool release_warp(Machine& m, unsigned base) {
  bool any = false;
  unsigned at = 0, live = 0;
  for (unsigned l = 0; l < 32; ++l) {
    const State s = m.fibers[base + l].state;
    live |= static_cast<unsigned>(s != State::done) << l;
    at |= static_cast<unsigned>(s == State::at_warp) << l;
  }
  for (unsigned left = at; left; left &= left - 1) {
    const unsigned l = static_cast<unsigned>(__builtin_ctz(left)), mask = m.fibers[base + l].mask;
    if (!(mask >> l & 1)) throw std::runtime_error("emulator: a thread's own lane is missing from its mask");
    if (mask & ~live) throw std::runtime_error("emulator: a mask names lanes that have ended");
    if ((mask & at) != mask) continue;
    for (unsigned k = 0; k < 32; ++k) {
      if (!(mask >> k & 1)) continue;
      if (m.fibers[base + k].mask != mask) throw std::runtime_error("emulator: lanes that meet have different masks");
      if (m.fibers[base + k].kind != m.fibers[base + l].kind) throw std::runtime_error("emulator: lanes meet in different operations");
      m.fibers[base + k].state = State::ready;
      m.given[base + k] = m.brought[base + k];
    }
    left &= ~mask | (1u << l);
    at &= ~mask;
    any = true;
  }
  return any;
}

// The same of the whole block.
bool release_block(Machine& m) {
  unsigned live = 0, waiting = 0;
  for (const Fiber& f : m.fibers) {
    live += f.state != State::done;
    waiting += f.state == State::at_block;
  }
  if (live == 0 || waiting != live) return false;
  for (Fiber& f : m.fibers)
    if (f.state == State::at_block) f.state = State::ready;
  return true;
}

// Each thread of turn[first, last) that is ready runs until it meets others.
void run_threads(Machine& m, std::vector<unsigned>& turn, unsigned first, unsigned last) {
  if (m.order > 1) std::shuffle(turn.begin() + first, turn.begin() + last, m.random);
  for (unsigned i = first; i < last; ++i) {
    Fiber& f = m.fibers[turn[i]];
    if (f.state != State::ready) continue;
    m.current = turn[i];
    thread_index = f.index;
    Context::change(&m.scheduler, &f.context);
    if (m.mistake) throw std::runtime_error(std::string("emulator: ") + m.mistake);
  }
}

bool all_done(const Machine& m) {
  return std::all_of(m.fibers.begin(), m.fibers.end(), [](const Fiber& f) { return f.state == State::done; });
}

void run_block(Machine& m) {
  m.shares.clear();
  m.shared_used = 0;
  std::memset(m.arena.get(), 0xa5, kSharedBytes);
  std::vector<unsigned> turn(m.threads), warps(m.threads / 32);
  for (unsigned i = 0; i < m.threads; ++i) {
    Fiber& f = m.fibers[i];
    f.context.start(m.stack(i), enter);
    *m.canary(i) = kCanary;
    f.state = State::ready;
    f.index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
    turn[i] = m.order == 1 ? m.threads - 1 - i : i;
  }
  for (unsigned w = 0; w < warps.size(); ++w) warps[w] = 32 * w;
  const bool ahead = m.order > 1 && m.order % 2 == 0;
  for (;;) {
    bool any = false;
    if (ahead) {
      std::shuffle(warps.begin(), warps.end(), m.random);
      for (unsigned base : warps) {
        do run_threads(m, turn, base, base + 32);
        while (release_warp(m, base));
      }
    } else {
      run_threads(m, turn, 0, m.threads);
      for (unsigned base : warps) any |= release_warp(m, base);
    }
    if (all_done(m)) break;
    if (!release_block(m) && !any) throw std::runtime_error("emulator: threads of a block wait at different barriers");
  }
  for (unsigned i = 0; i < m.threads; ++i)
    if (*m.canary(i) != kCanary) throw std::runtime_error("emulator: a thread needs more than its stack");
}

}  // namespace

void run(dim3 grid, dim3 block, size_t argument_bytes, const std::function<void()>& body) {
  const IeeeDenormals denormals;  // a GPU knows nothing of torch.set_flush_denormal
  Machine& m = machine();
  const char* order = std::getenv("ACDC_EMULATOR_ORDER");
  m.order = order ? static_cast<unsigned>(std::strtoul(order, nullptr, 10)) : 0;
  m.threads = block.x * block.y * block.z;
  if (m.threads == 0 || m.threads % 32 || m.threads > 1024)
    throw std::runtime_error("emulator: a block must have a multiple of 32 threads, at most 1024, got " + std::to_string(m.threads));
  if (m.stacks_for < m.threads) {
    m.stacks.reset(new char[m.threads * kStack]);
    m.stacks_for = m.threads;
  }
  m.fibers.assign(m.threads, Fiber{});
  m.brought.assign(m.threads, 0);
  m.given.assign(m.threads, 0);
  m.body = &body;
  m.random.seed(m.order);
  m.mistake = nullptr;
  block_size = block;
  grid_size = grid;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (blocks == 0) throw std::runtime_error("emulator: a grid must have at least one block");
  if (grid.x > 0x7fffffffu || grid.y > 0xffffu || grid.z > 0xffffu) throw std::runtime_error("emulator: a grid must be at most 2147483647 x 65535 x 65535");
  if (argument_bytes > kArgumentBytes) throw std::runtime_error("emulator: arguments must take at most 32764 bytes, got " + std::to_string(argument_bytes));
  std::vector<uint64_t> turn(blocks);
  for (uint64_t i = 0; i < blocks; ++i) turn[i] = m.order == 1 ? blocks - 1 - i : i;
  if (m.order > 1) std::shuffle(turn.begin(), turn.end(), m.random);
  for (uint64_t i : turn) {
    block_index = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y), static_cast<unsigned>(i / (uint64_t{grid.x} * grid.y))};
    run_block(m);
  }
}

void* shared(const char* file, int line, size_t bytes) {
  Machine& m = machine();
  for (const Share& s : m.shares)
    if (s.line == line && s.bytes == bytes && std::strcmp(s.file, file) == 0) return m.arena.get() + s.at;
  const size_t at = (m.shared_used + 15) / 16 * 16;
  if (at + bytes > kSharedBytes) fail("a kernel declares more than 48 KiB of shared memory");
  m.shares.push_back({file, line, bytes, at});
  m.shared_used = at + bytes;
  return m.arena.get() + at;
}

void meet_block() { park(State::at_block); }

const uint64_t* meet_warp(Meeting kind, unsigned mask, uint64_t value) {
  Machine& m = machine();
  const unsigned me = m.current;
  m.fibers[me].mask = mask;
  m.fibers[me].kind = kind;
  m.brought[me] = value;
  park(State::at_warp);
  return m.given.data() + (me & ~31u);
}

uint64_t shuffle(unsigned mask, uint64_t value, unsigned from, unsigned width) {
  if (width == 0 || width > 32 || (width & (width - 1))) fail("a shuffle's width must be a power of two up to 32");
  const unsigned source = (lane() & ~(width - 1)) | (from & (width - 1));
  const uint64_t* v = meet_warp(Meeting::shuffle, mask, value);
  if (!(mask >> source & 1)) fail("a shuffle reads a lane that isn't in its mask");
  return v[source];
}

unsigned lane() { return machine().current & 31; }

}  // namespace acdc::emulator
