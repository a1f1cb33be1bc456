#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "fiber.h"
#include "options.h"

thread_local uint3 threadIdx{}, blockIdx{};
thread_local dim3 blockDim, gridDim;

namespace cuda_emulation {

thread_local int this_lane = 0;

namespace {

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "CUDA emulation: %s\n", what.c_str());
    std::fflush(stderr);
    std::abort();
}

// A meeting point of some lanes of a warp: the same mask always means the same one.
struct Meeting {
    uint32_t mask = 0, arrived = 0;
    uint32_t generation = 0;
    const char* operation = "";
    alignas(16) std::byte payloads[2][kWarpSize][kMaxPayloadBytes];
};

struct Barrier {
    int arrived = 0, expected = 0;
    uint32_t generation = 0;
    int sum = 0, result[2] = {};
    const char* operation = "";
};

struct AsyncCopy {
    void* to;
    const void* from;
    size_t size, padded_size;
};

struct Thread {
    uint3 index{};
    int lane = 0, warp = 0;
    Fiber fiber;
    bool finished = false, gave_way = false;
    const uint32_t* waits_for = nullptr;  // until it is no longer `seen`
    uint32_t seen = 0;
    const char* waits_in = "";
    std::vector<AsyncCopy> open_copies;
    std::vector<std::vector<AsyncCopy>> copy_groups;

    bool can_run() const { return !finished && (waits_for == nullptr || *waits_for != seen); }
};

struct Warp {
    uint32_t lanes = 0;
    std::vector<std::unique_ptr<Meeting>> meetings;

    Meeting& meeting(uint32_t mask) {
        for (auto& each : meetings)
            if (each->mask == mask) return *each;
        meetings.push_back(std::make_unique<Meeting>());
        meetings.back()->mask = mask;
        return *meetings.back();
    }
};

class Machine {
  public:
    void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
        if (current_ != nullptr) fail("a kernel launches a kernel");
        body_ = &body;
        num_threads_ = static_cast<int>(block.x * block.y * block.z);
        prepare(grid, block, shared_bytes);
        const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
        std::vector<uint64_t> order(blocks);
        std::iota(order.begin(), order.end(), uint64_t{0});
        shuffle(order);
        for (uint64_t index : order)
            run_block({static_cast<unsigned>(index % grid.x),
                       static_cast<unsigned>(index / grid.x % grid.y),
                       static_cast<unsigned>(index / grid.x / grid.y)});
    }

    // ---- Called by the running thread
    void wait_while(const uint32_t& counter, uint32_t seen, const char* where) {
        Thread& self = *current_;
        self.waits_for = &counter;
        self.seen = seen;
        self.waits_in = where;
        while (counter == seen) switch_to_scheduler();
        self.waits_for = nullptr;
    }
    void switch_to_scheduler() { current_->fiber.leave(); }

    Thread& current() {
        if (current_ == nullptr) fail("a device function was called outside a kernel");
        return *current_;
    }
    Warp& warp() { return warps_[static_cast<size_t>(current().warp)]; }
    Barrier& barrier(int id) {
        if (id < 0 || id >= kNumBarriers) fail("barrier " + std::to_string(id));
        return barriers_[id];
    }
    int num_threads() const { return num_threads_; }
    int num_finished() const { return num_finished_; }
    void* shared() { return shared_.data(); }
    void run_body() {
        (*body_)();
        current_->finished = true;
        ++num_finished_;
    }

  private:
    static constexpr int kNumBarriers = 16;

    void prepare(dim3 grid, dim3 block, size_t shared_bytes) {
        const size_t count = static_cast<size_t>(num_threads_);
        while (threads_.size() < count) threads_.push_back(std::make_unique<Thread>());
        for (size_t i = 0; i < count; ++i) {
            const unsigned at = static_cast<unsigned>(i);
            threads_[i]->index = {at % block.x, at / block.x % block.y, at / block.x / block.y};
            threads_[i]->lane = static_cast<int>(i) % kWarpSize;
            threads_[i]->warp = static_cast<int>(i) / kWarpSize;
        }
        warps_.resize((count + kWarpSize - 1) / kWarpSize);
        for (size_t w = 0; w < warps_.size(); ++w) {
            const size_t lanes = std::min<size_t>(kWarpSize, count - w * kWarpSize);
            warps_[w].lanes = lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
        }
        blockDim = block;
        gridDim = grid;
        shared_.resize(shared_bytes);
    }

    void run_block(uint3 block_idx) {
        shared_.fill();
        for (Barrier& each : barriers_) each = {};
        num_finished_ = 0;
        blockIdx = block_idx;
        for (int i = 0; i < num_threads_; ++i) {
            Thread& thread = *threads_[static_cast<size_t>(i)];
            thread.finished = false;
            thread.waits_for = nullptr;
            thread.open_copies.clear();
            thread.copy_groups.clear();
            thread.fiber.start([](void* machine) { static_cast<Machine*>(machine)->run_body(); },
                               this);
        }
        for (Warp& each : warps_)
            for (auto& meeting : each.meetings) meeting->arrived = 0;
        std::vector<int> warp_order(warps_.size()), lane_order(kWarpSize);
        std::iota(warp_order.begin(), warp_order.end(), 0);
        std::iota(lane_order.begin(), lane_order.end(), 0);
        while (num_finished_ < num_threads_) {
            bool progress = false;
            gave_way_ = false;
            shuffle(warp_order);
            for (int warp_idx : warp_order) {
                shuffle(lane_order);
                while (run_warp(warp_idx, lane_order)) progress = true;
            }
            if (!progress && !gave_way_) report_deadlock(block_idx);
        }
    }

    bool run_warp(int warp_idx, const std::vector<int>& lane_order) {
        bool progress = false;
        for (int lane_idx : lane_order) {
            const int index = warp_idx * kWarpSize + lane_idx;
            if (index >= num_threads_) continue;
            Thread& thread = *threads_[static_cast<size_t>(index)];
            if (!thread.can_run()) continue;
            current_ = &thread;
            threadIdx = thread.index;
            this_lane = lane_idx;
            thread.fiber.enter();
            current_ = nullptr;
            if (thread.gave_way) {  // then other warps take their turns
                thread.gave_way = false;
                gave_way_ = true;
            } else {
                progress = true;
            }
        }
        return progress;
    }

    [[noreturn]] void report_deadlock(uint3 block_idx) {
        std::string text = "block (" + std::to_string(block_idx.x) + ", " +
                           std::to_string(block_idx.y) + ", " + std::to_string(block_idx.z) +
                           ") waits for ever:";
        int shown = 0;
        const char* last = nullptr;
        for (int i = 0; i < num_threads_; ++i) {
            const Thread& thread = *threads_[static_cast<size_t>(i)];
            const char* where = thread.finished ? "returned" : thread.waits_in;
            if (where == last) continue;
            last = where;
            if (++shown > 12) break;
            text += " thread " + std::to_string(i) + " " + (thread.finished ? "" : "is in ") +
                    where + ";";
        }
        fail(text);
    }

    template <typename T>
    void shuffle(std::vector<T>& order) {
        if (options().seed != 0) std::shuffle(order.begin(), order.end(), random_);
    }

    const std::function<void()>* body_ = nullptr;
    int num_threads_ = 0, num_finished_ = 0;
    bool gave_way_ = false;  // a thread, since the last round began
    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Warp> warps_;
    Barrier barriers_[kNumBarriers];
    GuardedMemory shared_;
    Thread* current_ = nullptr;
    std::mt19937_64 random_{options().seed};
};

Machine& machine() {
    thread_local std::unique_ptr<Machine> machine = std::make_unique<Machine>();
    return *machine;
}

void finish(const std::vector<AsyncCopy>& copies) {
    for (const AsyncCopy& copy : copies) {
        std::memset(copy.to, 0, copy.padded_size);
        if (copy.size > 0) std::memcpy(copy.to, copy.from, copy.size);
    }
}

}  // namespace

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
    machine().run(grid, block, shared_bytes, body);
}

void* dynamic_shared_memory() {
    return machine().shared();
}

uint32_t existing_lanes() {
    return machine().warp().lanes;
}

Payloads warp_collective(uint32_t mask, const char* operation, const void* payload, size_t size) {
    Machine& m = machine();
    const int self = m.current().lane;
    const uint32_t lane_bit = 1u << self;
    mask &= m.warp().lanes;
    if ((mask & lane_bit) == 0)
        fail(std::string(operation) + " by a lane that its own mask does not list");
    if (size > kMaxPayloadBytes) fail(std::string(operation) + " brings too much");
    Meeting& meeting = m.warp().meeting(mask);
    if (meeting.arrived == 0) meeting.operation = operation;
    if (std::strcmp(meeting.operation, operation) != 0)
        fail("lanes of a warp meet in different operations: " + std::string(meeting.operation) +
             " and " + operation);
    const uint32_t generation = meeting.generation;
    std::byte* slot = meeting.payloads[generation % 2][self];
    if (size > 0) std::memcpy(slot, payload, size);
    meeting.arrived |= lane_bit;
    if (meeting.arrived == mask) {
        meeting.arrived = 0;
        ++meeting.generation;
    } else {
        m.wait_while(meeting.generation, generation, operation);
    }
    return Payloads(&meeting.payloads[generation % 2][0][0]);
}

namespace {

// Returns the generation that this arrival belongs to.
uint32_t arrive(Barrier& barrier, int num_threads, const char* operation, int value) {
    Machine& m = machine();
    const int expected = num_threads == 0 ? m.num_threads() : num_threads;
    if (barrier.arrived == 0) {
        barrier.expected = expected;
        barrier.operation = operation;
        barrier.sum = 0;
    }
    if (barrier.expected != expected ||
        (std::strcmp(barrier.operation, operation) != 0 && num_threads == 0))
        fail("threads meet in different barriers: " + std::string(barrier.operation) + " and " +
             operation);
    const uint32_t generation = barrier.generation;
    barrier.sum += value;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        barrier.result[generation % 2] = barrier.sum;
        ++barrier.generation;
    }
    return generation;
}

}  // namespace

int barrier_sync(int id, int num_threads, const char* operation, int value) {
    Machine& m = machine();
    Barrier& barrier = m.barrier(id);
    m.current();
    const uint32_t generation = arrive(barrier, num_threads, operation, value);
    m.wait_while(barrier.generation, generation, operation);
    return barrier.result[generation % 2];
}

void barrier_arrive(int id, int num_threads) {
    arrive(machine().barrier(id), num_threads, "bar", 0);
}

void give_way() {
    machine().current().gave_way = true;
    machine().switch_to_scheduler();
}

void async_copy(void* to, const void* from, size_t size, size_t padded_size) {
    machine().current().open_copies.push_back({to, from, size, padded_size});
}

void async_copy_commit() {
    Thread& thread = machine().current();
    thread.copy_groups.push_back(std::move(thread.open_copies));
    thread.open_copies.clear();
}

void async_copy_wait(int groups_left) {
    std::vector<std::vector<AsyncCopy>>& groups = machine().current().copy_groups;
    while (static_cast<int>(groups.size()) > groups_left) {
        finish(groups.front());
        groups.erase(groups.begin());
    }
}

}  // namespace cuda_emulation
