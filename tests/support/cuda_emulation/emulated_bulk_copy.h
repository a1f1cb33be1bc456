// layers/cuda/bulk_copy.h on the emulated machine. Boxes come when their barrier is waited for;
// with a seed, at once.
#pragma once
#include <vector>

#include "emulated_wgmma.h"
#include "options.h"

namespace ferry {
namespace emulated {

// What a barrier's 64 bits hold here.
struct Arrivals {
    uint8_t expected, pending, phase, unused;
    int32_t bytes;
};
static_assert(sizeof(Arrivals) == sizeof(uint64_t));

inline Arrivals& arrivals_of(uint64_t* barrier) {
    return *reinterpret_cast<Arrivals*>(barrier);
}
inline void end_phase_if_complete(Arrivals& arrivals) {
    if (arrivals.pending != 0 || arrivals.bytes != 0) return;
    arrivals.pending = arrivals.expected;
    arrivals.phase ^= 1;
}

struct Box {
    std::byte* to;
    CUtensorMap map;
    int x, y;
    uint64_t* barrier;

    void copy() const {
        for (uint32_t row = 0; row < map.box_rows; ++row)
            for (uint32_t column = 0; column < map.box_columns; ++column) {
                const uint64_t i = static_cast<uint64_t>(y) + row;
                const uint64_t j = static_cast<uint64_t>(x) + column;
                uint16_t value = 0;
                if (i < map.rows && j < map.columns)
                    std::memcpy(&value, map.begin + i * map.row_bytes + j * 2, 2);
                std::memcpy(to + row * 128 + (((column / 8) ^ (row % 8)) * 16 + column % 8 * 2),
                            &value, 2);
            }
        Arrivals& arrivals = arrivals_of(barrier);
        arrivals.bytes -= static_cast<int32_t>(map.box_rows * map.box_columns * 2);
        end_phase_if_complete(arrivals);
    }
};
inline thread_local std::vector<Box> boxes;  // on their way

}  // namespace emulated

inline void init_arrivals(uint64_t* barrier, int arrivals) {
    emulated::arrivals_of(barrier) = {.expected = static_cast<uint8_t>(arrivals),
                                      .pending = static_cast<uint8_t>(arrivals),
                                      .phase = 0,
                                      .unused = 0,
                                      .bytes = 0};
}
inline void arrive_with_bytes(uint64_t* barrier, int bytes) {
    emulated::Arrivals& arrivals = emulated::arrivals_of(barrier);
    if (arrivals.pending == 0) std::abort();  // a phase ahead of those that wait
    --arrivals.pending;
    arrivals.bytes += bytes;
    emulated::end_phase_if_complete(arrivals);
}
inline void wait_for_arrivals(uint64_t* barrier, int parity) {
    while (emulated::arrivals_of(barrier).phase == parity) {
        std::erase_if(emulated::boxes, [barrier](const emulated::Box& box) {
            if (box.barrier == barrier) box.copy();
            return box.barrier == barrier;
        });
        if (emulated::arrivals_of(barrier).phase == parity) cuda_emulation::give_way();
    }
}
inline void copy_box(void* to, const CUtensorMap& map, int x, int y, uint64_t* barrier) {
    if (reinterpret_cast<uintptr_t>(to) % 1024 != 0) std::abort();
    const emulated::Box box{static_cast<std::byte*>(to), map, x, y, barrier};
    if (cuda_emulation::options().seed != 0)
        box.copy();
    else
        emulated::boxes.push_back(box);
}

inline void prefetch_box(const CUtensorMap&, int, int) {}

template <int>
void take_registers() {}
template <int>
void leave_registers() {}

}  // namespace ferry
