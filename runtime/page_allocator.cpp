#include "runtime/page_allocator.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/random.h"
#include "layers/kernels.h"

namespace ferry {
namespace {

uint64_t hash_prefix(int64_t parent, std::span<const int32_t> tokens) {
    uint64_t hash = mix64(static_cast<uint64_t>(parent));
    for (int32_t token : tokens) hash = mix64(hash ^ static_cast<uint32_t>(token));
    return hash;
}

}  // namespace

PageAllocator::PageAllocator(int64_t num_pages, bool share_prefixes)
    : num_pages_(num_pages), share_prefixes_(share_prefixes) {
    entries_.resize(static_cast<size_t>(num_pages));
    for (int32_t page = 0; page < num_pages; ++page) push_back(free_, page);
    num_free_ = num_pages;
    if (!share_prefixes) return;
    tokens_.resize(static_cast<size_t>(num_pages * kPageTokens));
    buckets_.assign(std::bit_ceil(static_cast<size_t>(std::max<int64_t>(num_pages, 1))), -1);
}

void PageAllocator::push_back(List& list, int32_t page) {
    at(page).previous = list.last;
    at(page).next = -1;
    (list.last < 0 ? list.first : at(list.last).next) = page;
    list.last = page;
}

void PageAllocator::remove(List& list, int32_t page) {
    const Entry& entry = at(page);
    (entry.previous < 0 ? list.first : at(entry.previous).next) = entry.next;
    (entry.next < 0 ? list.last : at(entry.next).previous) = entry.previous;
}

int32_t PageAllocator::allocate() {
    int32_t page = free_.first;
    if (page >= 0) {
        remove(free_, page);
        --num_free_;
    } else {
        page = kept_.first;
        if (page < 0) return -1;
        remove(kept_, page);
        --num_kept_;
        forget(page);
    }
    at(page).references = 1;
    return page;
}

void PageAllocator::release(int32_t page) {
    Entry& entry = at(page);
    FERRY_CHECK(entry.references > 0, "page {} released too often", page);
    if (--entry.references > 0) return;
    const bool keep = entry.node != 0;
    push_back(keep ? kept_ : free_, page);
    ++(keep ? num_kept_ : num_free_);
}

int32_t PageAllocator::lookup(int64_t parent, std::span<const int32_t> tokens,
                              uint64_t hash) const {
    for (int32_t page = buckets_[hash & (buckets_.size() - 1)]; page >= 0;
         page = entries_[static_cast<size_t>(page)].next_in_bucket) {
        const Entry& entry = entries_[static_cast<size_t>(page)];
        if (entry.hash == hash && entry.parent == parent &&
            std::equal(tokens.begin(), tokens.end(), tokens_.begin() + page * kPageTokens))
            return page;
    }
    return -1;
}

int32_t PageAllocator::find(int64_t parent, std::span<const int32_t> tokens) {
    if (!share_prefixes_) return -1;
    const int32_t page = lookup(parent, tokens, hash_prefix(parent, tokens));
    if (page < 0) return -1;
    if (at(page).references++ == 0) {
        remove(kept_, page);
        --num_kept_;
    }
    ++num_found_;
    return page;
}

int64_t PageAllocator::publish(int32_t page, int64_t parent, std::span<const int32_t> tokens) {
    FERRY_CHECK(static_cast<int64_t>(tokens.size()) == kPageTokens && at(page).references > 0);
    if (!share_prefixes_) return 0;
    const uint64_t hash = hash_prefix(parent, tokens);
    const int32_t existing = lookup(parent, tokens, hash);
    if (existing >= 0) return at(existing).node;
    Entry& entry = at(page);
    entry.node = next_node_++;
    entry.parent = parent;
    entry.hash = hash;
    std::copy(tokens.begin(), tokens.end(), tokens_.begin() + page * kPageTokens);
    int32_t& bucket = buckets_[hash & (buckets_.size() - 1)];
    entry.next_in_bucket = bucket;
    bucket = page;
    return entry.node;
}

void PageAllocator::forget(int32_t page) {
    Entry& entry = at(page);
    int32_t* link = &buckets_[entry.hash & (buckets_.size() - 1)];
    while (*link != page) link = &at(*link).next_in_bucket;
    *link = entry.next_in_bucket;
    entry.node = 0;
}

}  // namespace ferry
