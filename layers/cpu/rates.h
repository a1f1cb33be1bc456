// A kernel timed in turns with the two things that bound it, in the same process: a plain read loop
// over as many bytes, and multiply-adds on all threads. The best of each side counts, so that a
// machine shared with others still gives usable ratios. One thread: CPU time; several: wall time.
#pragma once
#include <algorithm>
#include <chrono>
#include <vector>

#include "layers/cpu/fma_peak.h"
#include "layers/cpu/read_loop.h"

namespace ferry {

class BenchClock {
  public:
    explicit BenchClock(const ThreadPool& threads) : cpu_(threads.num_threads() == 1) {}
    static BenchClock wall() { return BenchClock(); }

    double now_s() const {
        if (cpu_) return thread_cpu_seconds();
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
            .count();
    }
    template <typename Body>
    double seconds(Body&& body) const {
        const double begin = now_s();
        body();
        return now_s() - begin;
    }

  private:
    BenchClock() = default;
    bool cpu_ = false;
};

struct Rates {
    double kernel_s = 1e30;
    double read_bytes_per_s = 0;
    double peak_flops_per_s = 0;

    // Least seconds that the machine needs for so much work, by what it showed.
    double bound_s(double bytes, double flops) const {
        return std::max(bytes / read_bytes_per_s, flops / peak_flops_per_s);
    }
};

// One more turn; returns the kernel's time. `memory`: what the read loop reads.
template <typename Body>
double take_turn(ThreadPool& threads, const BenchClock& clock, const void* memory,
                 size_t size_bytes, Rates& rates, Body&& body) {
    const double kernel_s = clock.seconds(body);
    rates.kernel_s = std::min(rates.kernel_s, kernel_s);
    const double read_s = clock.seconds([&] { read_all(threads, memory, size_bytes); });
    rates.read_bytes_per_s =
        std::max(rates.read_bytes_per_s, static_cast<double>(size_bytes) / read_s);
    std::vector<double> flops(static_cast<size_t>(threads.num_threads()));
    const double peak_s = clock.seconds([&] {
        threads.parallel_for(threads.num_threads(), [&](int64_t task, int) {
            flops[static_cast<size_t>(task)] = fma_burst();
        });
    });
    double total = 0;
    for (double part : flops) total += part;
    rates.peak_flops_per_s = std::max(rates.peak_flops_per_s, total / peak_s);
    return kernel_s;
}
template <typename Body>
double take_turn(ThreadPool& threads, const void* memory, size_t size_bytes, Rates& rates,
                 Body&& body) {
    return take_turn(threads, BenchClock(threads), memory, size_bytes, rates, body);
}

}  // namespace ferry
