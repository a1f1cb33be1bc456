#include "fiber.h"

#include <cstdlib>

#if defined(__x86_64__)
// void cuda_emulation_switch(void** save_stack_pointer, void* stack_pointer)
extern "C" void cuda_emulation_switch(void** save, void* to);
asm(R"(
.text
.p2align 4
.type cuda_emulation_switch,@function
cuda_emulation_switch:
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
.size cuda_emulation_switch, .-cuda_emulation_switch
)");
#endif

namespace cuda_emulation {
namespace {

thread_local Fiber* entering = nullptr;

}  // namespace

Fiber::~Fiber() {
    if (stack_ != nullptr) munmap(stack_, kStackBytes);
}

void Fiber::start(Body body, void* argument) {
    constexpr size_t kGuardBytes = 4096;
    if (stack_ == nullptr) {
        void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) std::abort();
        stack_ = static_cast<std::byte*>(stack);
        mprotect(stack_, kGuardBytes, PROT_NONE);
        unpoison_from(stack_ + kGuardBytes);
    } else {
#if defined(__x86_64__)
        unpoison_from(stack_pointer_);  // of the calls in which it stopped
#else
        unpoison_from(stack_ + kGuardBytes);
#endif
    }
    body_ = body;
    argument_ = argument;
    fake_stack_[1] = nullptr;
#if defined(__x86_64__)
    // What a stopped fiber's stack looks like: six registers, then where to go on.
    void** top = reinterpret_cast<void**>(stack_ + kStackBytes);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(&Fiber::entry);
    for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
    stack_pointer_ = top - 8;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    const uint64_t self = reinterpret_cast<uintptr_t>(this);
    makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::entry), 2,
                static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
#endif
}

// Forgets the variables of calls that will not return, from there up to the stack's end.
void Fiber::unpoison_from([[maybe_unused]] const void* begin) {
#if CUDA_EMULATION_ASAN
    const auto* end = stack_ + kStackBytes;
    ASAN_UNPOISON_MEMORY_REGION(begin, end - static_cast<const std::byte*>(begin));
#endif
}

#if defined(__x86_64__)
void Fiber::entry() {
    entering->run();
}
void Fiber::switch_in() {
    cuda_emulation_switch(&caller_pointer_, stack_pointer_);
}
#else
void Fiber::entry(unsigned high, unsigned low) {
    reinterpret_cast<Fiber*>(static_cast<uintptr_t>((uint64_t{high} << 32) | low))->run();
}
void Fiber::switch_in() {
    swapcontext(&caller_, &context_);
}
#endif

void Fiber::switch_out([[maybe_unused]] bool for_good) {
#if CUDA_EMULATION_ASAN
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_[1], caller_stack_,
                                   caller_stack_bytes_);
#endif
#if defined(__x86_64__)
    cuda_emulation_switch(&stack_pointer_, caller_pointer_);
#else
    swapcontext(&context_, &caller_);
#endif
#if CUDA_EMULATION_ASAN
    __sanitizer_finish_switch_fiber(fake_stack_[1], &caller_stack_, &caller_stack_bytes_);
#endif
}

void Fiber::enter() {
    entering = this;
#if CUDA_EMULATION_ASAN
    __sanitizer_start_switch_fiber(&fake_stack_[0], stack_, kStackBytes);
#endif
    switch_in();
#if CUDA_EMULATION_ASAN
    __sanitizer_finish_switch_fiber(fake_stack_[0], nullptr, nullptr);
#endif
}

void Fiber::leave() {
    switch_out(false);
}

void Fiber::run() {
#if CUDA_EMULATION_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &caller_stack_, &caller_stack_bytes_);
#endif
    body_(argument_);
    switch_out(true);
    std::abort();  // nobody enters a fiber that has returned
}

}  // namespace cuda_emulation
