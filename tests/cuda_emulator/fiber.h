// One fiber carries one emulated CUDA thread: a stack of its own and a switch between stacks, by
// hand on x86-64 (about 5 ns), by ucontext elsewhere (each switch is a system call).
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(FASTSEG_EMULATOR_UCONTEXT)
#define FASTSEG_EMULATOR_ASSEMBLY 1
#else
#include <ucontext.h>
#endif

namespace cuda_emulator {

#ifdef FASTSEG_EMULATOR_ASSEMBLY
// Saves the registers that a call preserves and the stack pointer in *save, and continues with
// those that an earlier call saved in `load`.
extern "C" __attribute__((visibility("hidden"))) void fastseg_switch_stack(void** save, void* load);
asm(R"(
.pushsection .text
.globl fastseg_switch_stack
.hidden fastseg_switch_stack
.type fastseg_switch_stack, @function
fastseg_switch_stack:
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
.size fastseg_switch_stack, .-fastseg_switch_stack
.popsection
)");
#endif

// A place where execution can stop and go on: the scheduler's own stack or a fiber's.
class Context {
 public:
  // Stops here and goes on at `to`. A context that never resumes says so by `last`, which lets
  // AddressSanitizer drop what it keeps for its stack.
  void switch_to(Context& to, bool last = false) {
    announce_switch(to, last);
#ifdef FASTSEG_EMULATOR_ASSEMBLY
    fastseg_switch_stack(&stack_pointer_, to.stack_pointer_);
#else
    swapcontext(&registers_, &to.registers_);
#endif
    announce_arrival(nullptr);
  }

  // A started fiber's first statement; `from` is the context that switched to it.
  void announce_arrival(Context* from) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &size);
    if (from != nullptr) {
      from->stack_bottom_ = bottom;
      from->stack_size_ = size;
    }
#else
    static_cast<void>(from);
#endif
  }

 protected:
  void announce_switch([[maybe_unused]] const Context& to, [[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, to.stack_bottom_, to.stack_size_);
#endif
  }

#ifdef FASTSEG_EMULATOR_ASSEMBLY
  void* stack_pointer_ = nullptr;
#else
  ucontext_t registers_{};
#endif
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  const void* stack_bottom_ = nullptr;
  size_t stack_size_ = 0;
};

class Fiber : public Context {
 public:
  Fiber() {
    // Only touched pages become real memory. A page without access below the stack turns its
    // overflow into a fault.
    mapping_ = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(mapping_, kGuardBytes, PROT_NONE);
    stack_bottom_ = static_cast<char*>(mapping_) + kGuardBytes;
    stack_size_ = kStackBytes;
  }
  ~Fiber() { munmap(mapping_, kGuardBytes + kStackBytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Drops what the stack of a stopped fiber holds, so that it can be prepared anew.
  void abandon() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_bottom_, kStackBytes);  // the dropped frames' redzones
#endif
  }

  // Makes the next switch to this fiber call `entry`, which must never return.
  void prepare(void (*entry)()) {
    char* bottom = static_cast<char*>(mapping_) + kGuardBytes;
    fake_stack_ = nullptr;
#ifdef FASTSEG_EMULATOR_ASSEMBLY
    void** top = reinterpret_cast<void**>(bottom + kStackBytes);
    *--top = nullptr;  // the return address that ends a stack trace; also aligns as a call would
    *--top = reinterpret_cast<void*>(entry);
    for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = nullptr;
    stack_pointer_ = top;
#else
    getcontext(&registers_);
    registers_.uc_stack.ss_sp = bottom;
    registers_.uc_stack.ss_size = kStackBytes;
    registers_.uc_link = nullptr;
    makecontext(&registers_, entry, 0);
#endif
  }

 private:
  static constexpr size_t kGuardBytes = 64 * 1024;
  static constexpr size_t kStackBytes = 256 * 1024;

  void* mapping_ = nullptr;
};

}  // namespace cuda_emulator
