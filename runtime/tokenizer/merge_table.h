// The merges of a BPE model: (left id, right id) → rank and merged id, in one flat hash table.
#pragma once
#include <bit>
#include <cstdint>
#include <vector>

namespace ferry::tok {

class MergeTable {
  public:
    struct Merge {
        int32_t rank;
        int32_t new_id;
    };

    MergeTable() : MergeTable(0) {}
    explicit MergeTable(size_t num_merges)
        : slots_(std::bit_ceil(2 * num_merges + 2)), shift_(64 - std::countr_zero(slots_.size())) {}

    // A later merge of the same pair replaces the earlier one. At most the `num_merges` of the
    // constructor fit.
    void insert(int32_t left, int32_t right, Merge merge) {
        const uint64_t key = make_key(left, right);
        size_t idx = first_slot(key);
        while (slots_[idx].key != kEmpty && slots_[idx].key != key) idx = next_slot(idx);
        slots_[idx] = {key, merge};
    }

    // Null when the pair does not merge.
    const Merge* find(int32_t left, int32_t right) const {
        const uint64_t key = make_key(left, right);
        for (size_t idx = first_slot(key);; idx = next_slot(idx)) {
            if (slots_[idx].key == key) return &slots_[idx].merge;
            if (slots_[idx].key == kEmpty) return nullptr;
        }
    }

  private:
    static constexpr uint64_t kEmpty = ~uint64_t{0};  // ids are not negative
    struct Slot {
        uint64_t key = kEmpty;
        Merge merge{};
    };

    static uint64_t make_key(int32_t left, int32_t right) {
        return (uint64_t(uint32_t(left)) << 32) | uint32_t(right);
    }
    size_t first_slot(uint64_t key) const {
        return size_t((key * 0x9E3779B97F4A7C15u) >> shift_);  // Fibonacci hashing
    }
    size_t next_slot(size_t idx) const { return (idx + 1) & (slots_.size() - 1); }

    std::vector<Slot> slots_;
    int shift_;
};

}  // namespace ferry::tok
