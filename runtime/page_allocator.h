// Pages of the latent cache: who holds which, and which full prompt pages can be shared by requests
// with equal prefixes. Pure bookkeeping, no memory of its own beyond arrays made at construction.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace ferry {

// A page is free, held (reference count > 0), or kept: nobody holds it, but its prefix is known and
// it will be found again until its memory is needed (least recently used goes first).
class PageAllocator {
  public:
    // `share_prefixes`: remember full prompt pages. Without it lookups find nothing.
    PageAllocator(int64_t num_pages, bool share_prefixes);

    int64_t num_pages() const { return num_pages_; }
    int64_t num_available() const { return num_free_ + num_kept_; }  // free or kept
    int64_t num_held() const { return num_pages_ - num_available(); }

    // A page held once, or -1 when none is available.
    int32_t allocate();
    void release(int32_t page);

    // Prefixes form a tree: a page's node is its parent's node plus its 64 tokens. Node 0 is the
    // empty prefix. The page with exactly these tokens after `parent`, now held once more, or -1.
    int32_t find(int64_t parent, std::span<const int32_t> tokens);
    // Makes a held, fully computed page findable; returns its node (an existing equal page keeps
    // its place, and its node is returned).
    int64_t publish(int32_t page, int64_t parent, std::span<const int32_t> tokens);
    int64_t node(int32_t page) const { return entries_[static_cast<size_t>(page)].node; }

    bool shares_prefixes() const { return share_prefixes_; }
    int64_t num_found() const { return num_found_; }  // successful lookups so far

  private:
    struct Entry {
        int32_t references = 0;
        int32_t previous = -1, next = -1;  // in the free or the kept list
        int32_t next_in_bucket = -1;
        int64_t node = 0;  // 0: not published
        int64_t parent = 0;
        uint64_t hash = 0;
    };
    struct List {
        int32_t first = -1, last = -1;
    };
    Entry& at(int32_t page) { return entries_[static_cast<size_t>(page)]; }
    void push_back(List& list, int32_t page);
    void remove(List& list, int32_t page);
    int32_t lookup(int64_t parent, std::span<const int32_t> tokens, uint64_t hash) const;
    void forget(int32_t page);

    int64_t num_pages_;
    bool share_prefixes_;
    int64_t num_free_ = 0, num_kept_ = 0, num_found_ = 0;
    int64_t next_node_ = 1;
    List free_, kept_;
    std::vector<Entry> entries_;
    std::vector<int32_t> tokens_;   // [pages, 64], of published pages
    std::vector<int32_t> buckets_;  // first page of each hash bucket
};

}  // namespace ferry
