/* CUDA C++ on the host, one block at a time, its threads as fibers that change places at barriers and warp operations.

   What it finds: barriers that some threads miss, warp operations whose lanes disagree, results that depend on the order
   of threads or blocks, shared memory that is read before it is written (it holds 0xff), and, with a sanitizer,
   accesses out of range or not aligned. What it does not: blocks that run at the same time, races of the memory model. */
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#define CC_ASAN 1
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#define CC_UCONTEXT 1
#include <ucontext.h>
#endif

struct uint3_ {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) { return {a, b, c, d}; }
inline uint2 make_uint2(unsigned a, unsigned b) { return {a, b}; }

#define __global__ [[gnu::noinline]] inline
#define __device__ inline
#define __host__
#define __forceinline__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __constant__ static const
#define __restrict__ __restrict
/* All shared variables lie in one section, to be filled between blocks. */
#define __shared__ static __attribute__((section("cuda_shared")))
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(cc::dynamic)
extern "C" {
extern char __start_cuda_shared[] __attribute__((weak));
extern char __stop_cuda_shared[] __attribute__((weak));
}

namespace cc {
constexpr size_t kStack = 128 << 10;
enum State : unsigned char { RUN, BARRIER, WAIT, DONE };
enum Op : unsigned char { NONE, SHUFFLE, BALLOT, SYNC };
struct Fiber {
  void* sp = nullptr;
  char* stack = nullptr;
  uint3_ tid{};
  unsigned linear = 0;
  State state = RUN;
  Op op = NONE;
  unsigned mask = 0, source = 0;
  uint64_t in = 0, out = 0;
  void* fake = nullptr;
#ifdef CC_UCONTEXT
  ucontext_t context;
#endif
};
struct Warp {
  unsigned arrived = 0, done = 0;
};
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Fiber* current = nullptr;
inline dim3 block_dim, grid_dim;
inline uint3_ block_index;
inline unsigned threads = 0, done = 0, waiting = 0;
alignas(16) inline char dynamic[228 * 1024];
inline void (*entry)(void*) = nullptr;
inline void* entry_argument = nullptr;
inline int failed = 0;
inline char message[256];
inline int order = 0; /* 0 ascending, 1 descending, from 2 on shuffled */

inline void fail(const char* what) {
  if (failed) return;
  failed = 1;
  snprintf(message, sizeof message, "%s (block %u, thread %u)", what, block_index.x, current ? current->linear : 0);
}

#ifdef CC_UCONTEXT
inline ucontext_t scheduler;
inline void to_scheduler(bool = false) { swapcontext(&current->context, &scheduler); }
inline void to_fiber(Fiber* f) {
  current = f;
  swapcontext(&scheduler, &f->context);
}
#else
inline void* scheduler = nullptr;
extern "C" void cc_switch(void** save, void* to);
asm(R"(.text
.weak cc_switch
.type cc_switch,@function
cc_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
#ifdef CC_ASAN
inline void* scheduler_fake;
inline const void* scheduler_bottom;
inline size_t scheduler_size;
inline void to_scheduler(bool dying = false) {
  Fiber* f = current;
  __sanitizer_start_switch_fiber(dying ? nullptr : &f->fake, scheduler_bottom, scheduler_size);
  cc_switch(&f->sp, scheduler);
  __sanitizer_finish_switch_fiber(f->fake, &scheduler_bottom, &scheduler_size);
}
inline void to_fiber(Fiber* f) {
  current = f;
  __sanitizer_start_switch_fiber(&scheduler_fake, f->stack, kStack);
  cc_switch(&scheduler, f->sp);
  __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
}
#else
inline void to_scheduler(bool = false) { cc_switch(&current->sp, scheduler); }
inline void to_fiber(Fiber* f) {
  current = f;
  cc_switch(&scheduler, f->sp);
}
#endif
#endif

[[gnu::noinline]] inline void trampoline() {
#ifdef CC_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
  entry(entry_argument);
  current->state = DONE;
  ++done;
  warps[current->linear / 32].done |= 1u << (current->linear & 31);
  if (waiting) fail("a thread left while others wait at __syncthreads");
  to_scheduler(true);
  __builtin_unreachable();
}

inline void syncthreads() {
  if (done) fail("__syncthreads after a thread of the block has left");
  current->state = BARRIER;
  if (++waiting < threads) return to_scheduler();
  for (unsigned i = 0; i < threads; ++i)
    if (fibers[i].state == BARRIER) fibers[i].state = RUN;
  waiting = 0;
}

inline uint64_t warp_op(Op op, unsigned mask, uint64_t value, unsigned source) {
  Fiber* f = current;
  const unsigned lane = f->linear & 31, w = f->linear >> 5;
  Warp& warp = warps[w];
  const unsigned exist = (w + 1) * 32 <= threads ? ~0u : (1u << (threads & 31)) - 1u;
  if (!(mask >> lane & 1)) fail("the calling lane is not in its mask");
  if (mask & warp.done) fail("a warp operation names a lane that has left");
  mask &= exist;
  f->op = op;
  f->mask = mask;
  f->in = value;
  f->source = source;
  warp.arrived |= 1u << lane;
  if ((warp.arrived & mask) != mask) {
    f->state = WAIT;
    to_scheduler();
    return f->out;
  }
  Fiber* lanes = &fibers[w * 32];
  uint64_t ballot = 0;
  for (unsigned l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    if (lanes[l].mask != mask || lanes[l].op != op) fail("lanes disagree on a warp operation or its mask");
    if (op == BALLOT && lanes[l].in) ballot |= 1ull << l;
  }
  for (unsigned l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    if (op == BALLOT) lanes[l].out = ballot;
    if (op == SHUFFLE) {
      const unsigned s = lanes[l].source;
      if (s != l && !(mask >> s & 1)) fail("a shuffle reads a lane that takes no part");
      lanes[l].out = lanes[s].in;
    }
    if (lanes[l].state == WAIT) lanes[l].state = RUN;
  }
  warp.arrived &= ~mask;
  f->state = RUN;
  return f->out;
}

inline void run_block() {
  done = waiting = 0;
  warps.assign((threads + 31) / 32, Warp{});
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& f = fibers[i];
    f.linear = i;
    f.tid = {i, 0, 0};
    f.state = RUN;
    f.fake = nullptr;
#ifdef CC_UCONTEXT
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, (void (*)())trampoline, 0);
#else
    void** sp = (void**)(f.stack + kStack);
    *--sp = nullptr;
    *--sp = (void*)trampoline;
    sp -= 6;
    memset(sp, 0, 48);
    f.sp = sp;
#endif
  }
  if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
  static std::vector<unsigned> turn;
  turn.resize(threads);
  for (unsigned i = 0; i < threads; ++i) turn[i] = order == 1 ? threads - 1 - i : i;
  if (order > 1) {
    uint64_t s = order * 0x9E3779B97F4A7C15ull + block_index.x;
    for (unsigned i = threads; i > 1; --i) {
      s ^= s << 13;
      s ^= s >> 7;
      s ^= s << 17;
      std::swap(turn[i - 1], turn[s % i]);
    }
  }
  while (done < threads) {
    bool any = false;
    for (unsigned first = 0; first < threads; first += order > 1 ? threads : 32) {
      const unsigned end = order > 1 ? threads : std::min(first + 32, threads);
      for (bool again = true; again;) { /* a warp runs its shuffles before the next one moves */
        again = false;
        for (unsigned i = first; i < end; ++i) {
          if (fibers[turn[i]].state != RUN) continue;
          to_fiber(&fibers[turn[i]]);
          any = again = true;
          if (failed) return;
        }
        if (order > 1) break;
      }
    }
    if (!any) return fail("deadlock: a __syncthreads or warp operation that not all threads reach");
  }
}

inline int launch(void (*e)(void*), void* argument, unsigned grid, unsigned block, unsigned shared) {
  failed = 0;
  message[0] = 0;
  grid_dim = {grid, 1, 1};
  block_dim = {block, 1, 1};
  threads = block;
  entry = e;
  entry_argument = argument;
  current = nullptr;
  if (block > 1024 || block == 0 || grid == 0 || shared > sizeof dynamic) {
    fail("invalid launch configuration");
    return failed;
  }
  for (size_t i = fibers.size(); i < threads; ++i) {
    fibers.emplace_back();
    fibers.back().stack = (char*)aligned_alloc(4096, kStack);
  }
  for (unsigned k = 0; k < grid && !failed; ++k) {
    block_index = {order == 1 ? grid - 1 - k : k, 0, 0};
    memset(dynamic, 0xff, shared);
    run_block();
  }
  return failed;
}

template <auto K>
struct Invoke;
template <class... A, void (*K)(A...)>
struct Invoke<K> {
  static void go(void* p) {
    void** v = (void**)p;
    [&]<size_t... I>(std::index_sequence<I...>) {
      K(*(std::remove_const_t<std::remove_reference_t<A>>*)v[I]...);
    }(std::index_sequence_for<A...>{});
  }
};
}  // namespace cc

#define threadIdx (cc::current->tid)
#define blockIdx (cc::block_index)
#define blockDim (cc::block_dim)
#define gridDim (cc::grid_dim)
#define warpSize 32
inline void __syncthreads() { cc::syncthreads(); }
inline void __syncwarp(unsigned m = ~0u) { cc::warp_op(cc::SYNC, m, 0, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline unsigned __ballot_sync(unsigned m, int p) { return (unsigned)cc::warp_op(cc::BALLOT, m, p != 0, 0); }
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, !p) == 0; }
template <class T>
T cc_shuffle(unsigned m, T v, unsigned source) {
  static_assert(sizeof(T) <= 8);
  uint64_t u = 0;
  memcpy(&u, &v, sizeof v);
  u = cc::warp_op(cc::SHUFFLE, m, u, source);
  memcpy(&v, &u, sizeof v);
  return v;
}
inline unsigned cc_lane() { return cc::current->linear & 31; }
template <class T>
T __shfl_sync(unsigned m, T v, int s, int w = 32) {
  return cc_shuffle(m, v, (cc_lane() & ~(w - 1)) | (s & (w - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned m, T v, int x, int w = 32) {
  unsigned l = cc_lane(), s = l ^ x;
  return cc_shuffle(m, v, (s & ~(w - 1)) > (l & ~(w - 1)) ? l : s);
}
template <class T>
T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32) {
  unsigned l = cc_lane();
  return cc_shuffle(m, v, (l & (w - 1)) + d >= (unsigned)w ? l : l + d);
}
template <class T>
T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32) {
  unsigned l = cc_lane();
  return cc_shuffle(m, v, (l & (w - 1)) < d ? l : l - d);
}
template <class T, class F>
T cc_atomic(T* p, F f) {
  T old = *p;
  *p = f(old);
  return old;
}
template <class T, class U>
T atomicAdd(T* p, U v) {
  static_assert(std::is_integral_v<T>, "float atomics depend on the order of threads");
  return cc_atomic(p, [=](T o) { return (T)(o + (T)v); });
}
template <class T, class U>
T atomicMax(T* p, U v) {
  return cc_atomic(p, [=](T o) { return o > (T)v ? o : (T)v; });
}
template <class T, class U>
T atomicMin(T* p, U v) {
  return cc_atomic(p, [=](T o) { return o < (T)v ? o : (T)v; });
}
template <class T, class U>
T atomicOr(T* p, U v) {
  return cc_atomic(p, [=](T o) { return (T)(o | (T)v); });
}
template <class T, class U>
T atomicAnd(T* p, U v) {
  return cc_atomic(p, [=](T o) { return (T)(o & (T)v); });
}
template <class T, class U>
T atomicExch(T* p, U v) {
  return cc_atomic(p, [=](T) { return (T)v; });
}
template <class T, class U, class V>
T atomicCAS(T* p, U c, V v) {
  return cc_atomic(p, [=](T o) { return o == (T)c ? (T)v : o; });
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero((unsigned)x); }
inline int __clzll(long long x) { return std::countl_zero((unsigned long long)x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned s) {
  return (unsigned)(((uint64_t)high << 32 | low) >> (s & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned s) {
  return (unsigned)(((uint64_t)high << 32 | low) << (s & 31) >> 32);
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
using std::max;
using std::min;

#define CC_EXPORT(k)                                                                                                   \
  extern "C" int cc_launch_##k(unsigned grid, unsigned block, unsigned shared, void** argument) {                      \
    return cc::launch(&cc::Invoke<&k>::go, argument, grid, block, shared);                                             \
  }
extern "C" inline const char* cc_message_of() { return cc::message; }
#define CC_EXPORT_COMMON                                                                                               \
  extern "C" const char* cc_message() { return cc::message; }                                                          \
  extern "C" void cc_order(int order) { cc::order = order; }
