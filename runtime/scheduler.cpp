#include "runtime/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace ferry {

StepBatch StepPlan::batch() const {
    return {.tokens = tokens,
            .positions = positions,
            .slots = slots,
            .prompt = prompt,
            .generated = generated,
            .logit_rows = logit_rows};
}

Scheduler::Scheduler(const SchedulerOptions& options, PageAllocator& pages)
    : options_(options), pages_(pages) {
    FERRY_CHECK(options.max_batch >= 1 && options.max_batch_tokens >= options.max_batch,
                "max_batch {} and max_batch_tokens {}", options.max_batch,
                options.max_batch_tokens);
    const size_t rows = static_cast<size_t>(options.max_batch_tokens);
    const size_t sequences = static_cast<size_t>(options.max_batch);
    plan_.tokens.reserve(rows);
    plan_.positions.reserve(rows);
    plan_.slots.reserve(rows);
    plan_.prompt.reserve(sequences);
    plan_.generated.reserve(sequences);
    plan_.logit_rows.reserve(sequences);
    plan_.logit_sequences.reserve(sequences);
    running_.reserve(sequences);
    chunks_.reserve(sequences);
}

int64_t Scheduler::pages_needed(int64_t max_length) {
    return ceil_div(max_length, kPageTokens);
}

void Scheduler::add(Sequence& sequence) {
    FERRY_CHECK(pages_needed(sequence.max_length) <= pages_.num_pages() &&
                    sequence.prompt_length >= 1 &&
                    static_cast<int64_t>(sequence.tokens.size()) >= sequence.prompt_length,
                "sequence of {} tokens, {} at most, {} pages", sequence.tokens.size(),
                sequence.max_length, pages_.num_pages());
    sequence.tokens.reserve(static_cast<size_t>(sequence.max_length));
    sequence.pages.reserve(static_cast<size_t>(pages_needed(sequence.max_length)));
    waiting_.push_back(&sequence);
}

// Pages for positions [0, length), taking them from later arrivals if need be. False: the sequence
// must wait.
bool Scheduler::reserve_pages(Sequence& sequence, int64_t length) {
    while (static_cast<int64_t>(sequence.pages.size()) < pages_needed(length)) {
        const int32_t page = pages_.allocate();
        if (page >= 0)
            sequence.pages.push_back(page);
        else if (!preempt_after(sequence))
            return false;
    }
    return true;
}

// Sends the last arrival back to waiting, if it arrived after `sequence`.
bool Scheduler::preempt_after(const Sequence& sequence) {
    Sequence* last = running_.empty() ? nullptr : running_.back();
    if (last == nullptr || last->arrival <= sequence.arrival) return false;
    running_.pop_back();
    std::erase_if(chunks_, [&](const Chunk& chunk) { return chunk.sequence == last; });
    release_pages(*last);
    ++last->num_preemptions;
    ++num_preemptions_;
    waiting_.push_front(last);
    return true;
}

void Scheduler::release_pages(Sequence& sequence) {
    // Last page first: kept pages are evicted oldest first, and a prefix is worth more than its
    // continuation.
    for (size_t i = sequence.pages.size(); i-- > 0;) pages_.release(sequence.pages[i]);
    sequence.pages.clear();
    sequence.num_computed = 0;
    sequence.num_published = 0;
    sequence.last_node = 0;
}

// Starts a waiting sequence: takes over the prompt pages that are known already, always leaving one
// token to compute.
bool Scheduler::admit(Sequence& sequence) {
    const int64_t sharable = (sequence.prompt_length - 1) / kPageTokens;
    while (sequence.num_published < sharable) {
        const std::span<const int32_t> tokens(
            sequence.tokens.data() + sequence.num_published * kPageTokens, kPageTokens);
        const int32_t page = pages_.find(sequence.last_node, tokens);
        if (page < 0) break;
        sequence.pages.push_back(page);
        sequence.last_node = pages_.node(page);
        ++sequence.num_published;
    }
    sequence.num_computed = sequence.num_published * kPageTokens;
    if (sequence.num_preemptions == 0) sequence.num_prefix_tokens = sequence.num_computed;
    // One page more must be there at once, or the sequence would hold shared pages for nothing.
    if (pages_.num_available() > 0) return true;
    release_pages(sequence);
    return false;
}

const StepPlan& Scheduler::plan() {
    chunks_.clear();
    int64_t budget = options_.max_batch_tokens;
    // Generating sequences first: one row each.
    for (size_t i = 0; i < running_.size(); ++i) {
        Sequence& sequence = *running_[i];
        const int64_t length = static_cast<int64_t>(sequence.tokens.size());
        if (length - sequence.num_computed != 1) continue;
        if (!reserve_pages(sequence, length)) break;
        chunks_.push_back({&sequence, 1});
        --budget;
    }
    // Then prompts (and recomputation) of running sequences, then new ones, by arrival.
    const auto take_chunk = [&](Sequence& sequence) {
        const int64_t left = static_cast<int64_t>(sequence.tokens.size()) - sequence.num_computed;
        const int64_t num = std::min({left, budget, options_.max_prefill_chunk});
        if (num <= 0 || !reserve_pages(sequence, sequence.num_computed + num)) return false;
        chunks_.push_back({&sequence, num});
        budget -= num;
        return true;
    };
    for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
        Sequence& sequence = *running_[i];
        if (static_cast<int64_t>(sequence.tokens.size()) - sequence.num_computed > 1 &&
            !take_chunk(sequence))
            break;
    }
    while (!waiting_.empty() && budget > 0 && num_running() < options_.max_batch) {
        Sequence& sequence = *waiting_.front();
        if (!admit(sequence)) break;
        waiting_.pop_front();
        running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence,
                                         [](const Sequence* a, const Sequence* b) {
                                             return a->arrival < b->arrival;
                                         }),
                        &sequence);
        if (!take_chunk(sequence)) break;
    }
    lay_out_rows();
    return plan_;
}

void Scheduler::add_rows(const Sequence& sequence, int64_t begin, int64_t end,
                         std::vector<SequenceRows>& list) {
    if (begin >= end) return;
    list.push_back({.first_row = static_cast<int64_t>(plan_.tokens.size()),
                    .num_rows = end - begin,
                    .first_position = begin,
                    .pages = sequence.pages});
    for (int64_t position = begin; position < end; ++position) {
        plan_.tokens.push_back(sequence.tokens[static_cast<size_t>(position)]);
        plan_.positions.push_back(static_cast<int32_t>(position));
        plan_.slots.push_back(sequence.pages[static_cast<size_t>(position / kPageTokens)] *
                                  kPageTokens +
                              position % kPageTokens);
    }
}

void Scheduler::lay_out_rows() {
    plan_.tokens.clear();
    plan_.positions.clear();
    plan_.slots.clear();
    plan_.prompt.clear();
    plan_.generated.clear();
    plan_.logit_rows.clear();
    plan_.logit_sequences.clear();
    const auto wants_logits = [&](const Chunk& chunk, int64_t end) {
        if (end != static_cast<int64_t>(chunk.sequence->tokens.size())) return;
        plan_.logit_rows.push_back(static_cast<int32_t>(plan_.tokens.size()) - 1);
        plan_.logit_sequences.push_back(chunk.sequence);
    };
    for (const Chunk& chunk : chunks_) {
        const Sequence& sequence = *chunk.sequence;
        const int64_t begin = sequence.num_computed, end = begin + chunk.num_tokens;
        if (begin >= sequence.prompt_length) continue;
        add_rows(sequence, begin, std::min(end, sequence.prompt_length), plan_.prompt);
        if (end <= sequence.prompt_length) wants_logits(chunk, end);
    }
    for (const Chunk& chunk : chunks_) {
        const Sequence& sequence = *chunk.sequence;
        const int64_t begin = sequence.num_computed, end = begin + chunk.num_tokens;
        if (end <= sequence.prompt_length) continue;
        add_rows(sequence, std::max(begin, sequence.prompt_length), end, plan_.generated);
        wants_logits(chunk, end);
    }
}

void Scheduler::publish_prompt_pages(Sequence& sequence) {
    const int64_t full = std::min(sequence.num_computed, sequence.prompt_length) / kPageTokens;
    for (; sequence.num_published < full; ++sequence.num_published)
        sequence.last_node = pages_.publish(
            sequence.pages[static_cast<size_t>(sequence.num_published)], sequence.last_node,
            {sequence.tokens.data() + sequence.num_published * kPageTokens, kPageTokens});
}

void Scheduler::complete() {
    for (const Chunk& chunk : chunks_) {
        chunk.sequence->num_computed += chunk.num_tokens;
        publish_prompt_pages(*chunk.sequence);
    }
    chunks_.clear();
}

void Scheduler::finish(Sequence& sequence) {
    std::erase(running_, &sequence);
    std::erase(waiting_, &sequence);
    release_pages(sequence);
}

}  // namespace ferry
