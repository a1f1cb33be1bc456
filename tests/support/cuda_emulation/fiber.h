// A function with a stack of its own that stops and goes on. And memory whose misuse shows.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CUDA_EMULATION_ASAN 1
#else
#define CUDA_EMULATION_ASAN 0
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_emulation {

class Fiber {
  public:
    using Body = void (*)(void* argument);

    Fiber() = default;
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // From the beginning at the next enter(). A stopped fiber may be started anew.
    void start(Body body, void* argument);
    void enter();  // until the fiber leaves or its body returns
    void leave();  // by the fiber itself

  private:
    static constexpr size_t kStackBytes = CUDA_EMULATION_ASAN ? 512 << 10 : 128 << 10;
    void run();
    void unpoison_from(const void* begin);
    void switch_in();
    void switch_out(bool for_good);

    std::byte* stack_ = nullptr;
    Body body_ = nullptr;
    void* argument_ = nullptr;
    void* fake_stack_[2] = {};  // ASan's, of the caller and of the fiber
    const void* caller_stack_ = nullptr;
    size_t caller_stack_bytes_ = 0;
#if defined(__x86_64__)
    static void entry();
    void* stack_pointer_ = nullptr;
    void* caller_pointer_ = nullptr;
#else
    static void entry(unsigned high, unsigned low);
    ucontext_t context_{}, caller_{};
#endif
};

// Shared memory of a block: filled with NaN anew for each block; ASan sees accesses beyond its end.
class GuardedMemory {
  public:
    GuardedMemory() {
        data_ = static_cast<std::byte*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    ~GuardedMemory() { munmap(data_, kBytes); }
    GuardedMemory(const GuardedMemory&) = delete;
    GuardedMemory& operator=(const GuardedMemory&) = delete;

    void resize(size_t size) {
        size_ = size;
#if CUDA_EMULATION_ASAN
        ASAN_UNPOISON_MEMORY_REGION(data_, kBytes);
        ASAN_POISON_MEMORY_REGION(data_ + size, kBytes - size);
#endif
    }
    void fill() {
        std::memset(data_, 0xff, size_);
    }
    std::byte* data() {
        return data_;
    }

  private:
    static constexpr size_t kBytes = 256 << 10;
    std::byte* data_;
    size_t size_ = 0;
};

}  // namespace cuda_emulation
