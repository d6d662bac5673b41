// Stacks that can be left and entered again, and what the sanitizers must hear of it. This file and machine.cpp are compiled
// without sanitizers, so that only the kernels are watched; a runtime that is linked in is found by its weak symbols.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <new>

extern "C" {
#define MRT_WEAK __attribute__((weak))
MRT_WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
MRT_WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
MRT_WEAK void __asan_poison_memory_region(const volatile void* begin, size_t size);
MRT_WEAK void __asan_unpoison_memory_region(const volatile void* begin, size_t size);
MRT_WEAK void* __tsan_get_current_fiber();
MRT_WEAK void* __tsan_create_fiber(unsigned flags);
MRT_WEAK void __tsan_destroy_fiber(void* fiber);
MRT_WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
MRT_WEAK void __tsan_acquire(void* address);
MRT_WEAK void __tsan_release(void* address);
#undef MRT_WEAK
}

namespace mrt::emulator {

inline bool watches_threads() {
  return __tsan_create_fiber != nullptr;
}

// What happened before a release of `token` happened before what follows an acquire of it. A switch alone orders nothing.
inline void release(void* token) {
  if (__tsan_release) __tsan_release(token);
}
inline void acquire(void* token) {
  if (__tsan_acquire) __tsan_acquire(token);
}
inline void poison(const void* begin, size_t size) {
  if (__asan_poison_memory_region) __asan_poison_memory_region(begin, size);
}
inline void unpoison(const void* begin, size_t size) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(begin, size);
}

// Memory of one stack; a page below it stops what would overflow.
class Stack {
 public:
  static constexpr size_t GUARD = 4096, SIZE = 256 << 10;  // frames under AddressSanitizer are several times larger
  Stack() {
    void* const memory = mmap(nullptr, GUARD + SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(memory) + GUARD;
    if (mprotect(base_, SIZE, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  }
  ~Stack() { munmap(base_ - GUARD, GUARD + SIZE); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* base() const { return base_; }

 private:
  char* base_;
};

#if defined(__x86_64__) && !defined(MRT_UCONTEXT)

// Where a stack was left. Saves the registers that a call preserves and changes stacks: twenty times as fast as swapcontext,
// which asks the kernel for the signal mask each time.
struct Position {
  void* top = nullptr;
};

__attribute__((naked, noinline)) inline void swap_stacks(void** /*from*/, void* /*to*/) {
  __asm__ volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}

inline void prepare(Position& position, const Stack& stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack.base() + Stack::SIZE) - 1;
  *top = nullptr;  // the return address of entry, which never returns: unwinding ends here
  *--top = reinterpret_cast<void*>(entry);
  constexpr int SAVED_REGISTERS = 6;
  for (int i = 0; i < SAVED_REGISTERS; ++i) *--top = nullptr;
  position.top = top;
}

inline void swap(Position& from, Position& to) {
  swap_stacks(&from.top, to.top);
}

#else

struct Position {
  ucontext_t context;
};

inline void prepare(Position& position, const Stack& stack, void (*entry)()) {
  getcontext(&position.context);
  position.context.uc_stack.ss_sp = stack.base();
  position.context.uc_stack.ss_size = Stack::SIZE;
  position.context.uc_link = nullptr;
  makecontext(&position.context, entry, 0);
}

inline void swap(Position& from, Position& to) {
  swapcontext(&from.context, &to.context);
}

#endif

// A thread of control: the caller's own, or a fiber on a stack.
class Context {
 public:
  Context() = default;
  ~Context() {
    if (is_fiber_ && watches_threads()) __tsan_destroy_fiber(thread_);
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // The caller's own.
  void adopt() {
    if (watches_threads()) thread_ = __tsan_get_current_fiber();
  }

  // A fiber that will run `entry`. It sees what the caller has done so far.
  void start(const Stack& stack, void (*entry)()) {
    bottom_ = stack.base();
    size_ = Stack::SIZE;
    unpoison(bottom_, size_);  // what an earlier fiber left there
    prepare(position_, stack, entry);
    is_fiber_ = true;
    if (watches_threads()) thread_ = __tsan_create_fiber(0);
  }

  // Leaves this one for another; returns when somebody comes back.
  void go_to(Context& other, bool for_ever = false) {
    if (__sanitizer_start_switch_fiber) {
      __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake_stack_, other.bottom_, other.size_);
    }
    constexpr unsigned NO_SYNC = 1;
    if (watches_threads()) __tsan_switch_to_fiber(other.thread_, NO_SYNC);
    swap(position_, other.position_);
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
  }

  // The first act of a fiber, which learns the stack that it came from.
  static void arrive(Context& from) {
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &from.bottom_, &from.size_);
  }

 private:
  Position position_;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void* thread_ = nullptr;
  bool is_fiber_ = false;
};

}  // namespace mrt::emulator
