// Slots and boards in registered memory: how slots' flags read, and what a rank tells its peers at
// start-up so that they can reach them.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "comm/transport.h"

namespace ferry {

// A slot's flag: which message it holds, counted from 1, and its size in units. One word, so that
// it becomes visible whole.
constexpr uint64_t flag_of(uint32_t sequence, size_t size_bytes) {
    return static_cast<uint64_t>(sequence) << 32 | size_bytes / kMessageUnit;
}
constexpr uint32_t sequence_of(uint64_t flag) {
    return static_cast<uint32_t>(flag >> 32);
}
constexpr size_t size_of(uint64_t flag) {
    return (flag & 0xffffffffu) * kMessageUnit;
}
inline uint64_t load_flag(std::byte* flag) {
    return std::atomic_ref(*reinterpret_cast<uint64_t*>(flag)).load(std::memory_order_acquire);
}
inline void store_flag(std::byte* flag, uint64_t value) {
    std::atomic_ref(*reinterpret_cast<uint64_t*>(flag)).store(value, std::memory_order_release);
}

// A receive slot in its owner's registered region.
struct SlotAddress {
    int32_t peer = 0;  // who may send to it
    int32_t channel = 0;
    uint64_t capacity_bytes = 0;
    uint64_t flag_offset = 0;
    uint64_t data_offset = 0;
};
// A board in its writer's registered region.
struct BoardAddress {
    int32_t channel = 0;
    uint64_t data_offset = 0;
};
struct Introduction {
    std::string worker_address;
    std::string region_key;
    uint64_t region = 0;
    std::vector<SlotAddress> slots;
    std::vector<BoardAddress> boards;

    std::string pack() const {
        std::string text;
        const auto add = [&](const void* data, size_t size) {
            if (size > 0) text.append(static_cast<const char*>(data), size);
        };
        for (size_t size : {worker_address.size(), region_key.size(), slots.size(), boards.size()})
            add(&size, sizeof size);
        add(&region, sizeof region);
        text += worker_address + region_key;
        add(slots.data(), slots.size() * sizeof(SlotAddress));
        add(boards.data(), boards.size() * sizeof(BoardAddress));
        return text;
    }
    explicit Introduction(const std::string& text) {
        size_t at = 0;
        const auto take = [&](void* data, size_t size) {
            FERRY_CHECK(at + size <= text.size());
            if (size > 0) std::memcpy(data, text.data() + at, size);
            at += size;
        };
        size_t sizes[4];
        take(sizes, sizeof sizes);
        take(&region, sizeof region);
        worker_address.resize(sizes[0]);
        region_key.resize(sizes[1]);
        slots.resize(sizes[2]);
        boards.resize(sizes[3]);
        take(worker_address.data(), sizes[0]);
        take(region_key.data(), sizes[1]);
        take(slots.data(), sizes[2] * sizeof(SlotAddress));
        take(boards.data(), sizes[3] * sizeof(BoardAddress));
    }
    Introduction() = default;
};

}  // namespace ferry
