// Fibers: stacks between which one operating-system thread switches, in a few nanoseconds.
//
// On x86-64 and aarch64 this code switches by hand (callee-saved registers and the stack pointer); on other machines it
// uses ucontext, whose switch is a system call. It tells AddressSanitizer of every switch; otherwise that would report
// errors that are not there.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#define LGFAST_FIBER_UCONTEXT
#include <ucontext.h>
#endif

namespace lgfast::emulation {

// A stack with an unmapped page below it, so that an overflow faults at once.
class Stack {
 public:
  static constexpr size_t kBytes = 256 * 1024;

  Stack() : page_(size_t(sysconf(_SC_PAGESIZE))) {
    mapping_ = mmap(nullptr, kBytes + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED || mprotect(mapping_, page_, PROT_NONE) != 0) {
      std::perror("lgfast emulation: no memory for a fiber's stack");
      std::abort();
    }
  }
  ~Stack() { munmap(mapping_, kBytes + page_); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  char* bottom() const { return static_cast<char*>(mapping_) + page_; }
  char* top() const { return bottom() + kBytes; }

  // Removes the marks of frames that AddressSanitizer keeps of a finished kernel, so that the next one starts clean.
  void unpoison() const {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(bottom(), kBytes);
#endif
  }

 private:
  size_t page_;
  void* mapping_;
};

struct Fiber {
#if defined(LGFAST_FIBER_UCONTEXT)
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  const void* stack_bottom = nullptr;  // for AddressSanitizer
  size_t stack_bytes = 0;
};

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
lgfast_switch_stack:
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
)");
constexpr int kSavedWords = 6, kFrameWords = 8;  // the return address stands at word 6; `entry` sees an aligned stack
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
lgfast_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr int kSavedWords = 11, kFrameWords = 20;  // x30, the return address, is word 11
#endif

#if !defined(LGFAST_FIBER_UCONTEXT)
extern "C" void lgfast_switch_stack(void** save, void* resume) asm("lgfast_switch_stack");
#endif

// Makes a fiber start in `entry`, which must never return: it ends by switching away for good.
inline void prepare(Fiber& fiber, const Stack& stack, void (*entry)()) {
  stack.unpoison();
  fiber.stack_bottom = stack.bottom();
  fiber.stack_bytes = Stack::kBytes;
#if defined(LGFAST_FIBER_UCONTEXT)
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack.bottom();
  fiber.context.uc_stack.ss_size = Stack::kBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#else
  void** frame = reinterpret_cast<void**>(stack.top()) - kFrameWords;
  for (int i = 0; i < kFrameWords; ++i) frame[i] = nullptr;
  frame[kSavedWords] = reinterpret_cast<void*>(entry);
  fiber.stack_pointer = frame;
#endif
}

// Must be called first in a new fiber, and after every switch back into one.
inline void finish_switch([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

// Switches from one fiber to another. If `last` is true, `from` is left for good.
inline void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool last = false) {
  void* fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack, to.stack_bottom, to.stack_bytes);
#endif
#if defined(LGFAST_FIBER_UCONTEXT)
  swapcontext(&from.context, &to.context);
#else
  lgfast_switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
  finish_switch(fake_stack);
}

}  // namespace lgfast::emulation
