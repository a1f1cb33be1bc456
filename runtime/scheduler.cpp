#include "runtime/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace ferry {
namespace {

// Rows that were its own are nobody's.
void forget(std::vector<Sequence*>& list, const Sequence& sequence) {
    std::ranges::replace(list, &sequence, nullptr);
}

}  // namespace

StepBatch StepPlan::batch() const {
    return {.tokens = tokens,
            .positions = positions,
            .slots = slots,
            .prompt = prompt,
            .generated = generated,
            .logit_rows = logit_rows};
}

Scheduler::Scheduler(const SchedulerOptions& options, PageAllocator& pages)
    : options_(options),
      pages_(pages),
      room_(options.num_expanded_units, options.num_layers, options.max_batch) {
    FERRY_CHECK(options.max_batch >= 1 && options.max_batch_tokens >= options.max_batch &&
                    options.max_drafts >= 0 && options.max_drafts <= kMostDrafts,
                "max_batch {}, max_batch_tokens {}, max_drafts {}", options.max_batch,
                options.max_batch_tokens, options.max_drafts);
    const size_t rows = static_cast<size_t>(options.max_batch_tokens);
    const size_t sequences = static_cast<size_t>(options.max_batch);
    for (StepPlan* plan : {&plan_, &ahead_plan_}) {
        plan->tokens.reserve(rows);
        plan->positions.reserve(rows);
        plan->slots.reserve(rows);
        plan->prompt.reserve(2 * sequences);
        plan->generated.reserve(sequences);
        plan->prompt_sequences.reserve(2 * sequences);
        plan->generated_sequences.reserve(sequences);
        plan->logit_rows.reserve(static_cast<size_t>(options.max_logit_rows()));
        plan->logit_sequences.reserve(static_cast<size_t>(options.max_logit_rows()));
    }
    running_.reserve(sequences);
    chunks_.reserve(sequences);
    ahead_.reserve(sequences);
}

int64_t Scheduler::pages_needed(int64_t max_length) {
    return ceil_div(max_length, kPageTokens);
}

void Scheduler::add(Sequence& sequence) {
    FERRY_CHECK(pages_needed(sequence.max_length) <= pages_.num_pages() &&
                    sequence.prompt_length >= 1 && sequence.length() >= sequence.prompt_length &&
                    sequence.num_drafts == 0,
                "sequence of {} tokens, {} at most, {} pages", sequence.tokens.size(),
                sequence.max_length, pages_.num_pages());
    sequence.tokens.reserve(static_cast<size_t>(sequence.max_length));
    sequence.pages.reserve(static_cast<size_t>(pages_needed(sequence.max_length)));
    waiting_.push_back(&sequence);
    num_waiting_prompt_rows_ += sequence.prompt_length;
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
    if (last->chunk >= 0) {
        chunks_.erase(chunks_.begin() + last->chunk);
        for (size_t i = static_cast<size_t>(last->chunk); i < chunks_.size(); ++i)
            if (chunks_[i].sequence != nullptr)
                chunks_[i].sequence->chunk = static_cast<int64_t>(i);
        last->chunk = -1;
    }
    if (last->is_ahead) clear_ahead();
    reject_drafts(*last);
    release_pages(*last);
    ++last->num_preemptions;
    ++num_preemptions_;
    waiting_.push_front(last);
    num_waiting_prompt_rows_ += last->prompt_length;
    return true;
}

void Scheduler::release_pages(Sequence& sequence) {
    // Last page first: kept pages are evicted oldest first, and a prefix is worth more than its
    // continuation.
    for (size_t i = sequence.pages.size(); i-- > 0;) pages_.release(sequence.pages[i]);
    sequence.pages.clear();
    room_.release(sequence.expanded);
    sequence.num_computed = 0;
    sequence.num_published = 0;
    sequence.last_node = 0;
}

// Starts a waiting sequence: takes over the prompt pages that are known already, always leaving one
// token to compute.
bool Scheduler::admit(Sequence& sequence) {
    if (pages_.num_available() == 0) return false;  // and what is found leaves no more
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

// Room for a prompt that more chunks follow of, or more parts of this one, or that goes on from
// pages which others have computed, and which more may go on from. Several such prompts in one step
// share what they expand of those pages anyway (Mla).
void Scheduler::take_room(Sequence& sequence, int64_t begin, int64_t num_tokens) {
    const bool in_parts = options_.num_parts > 1 && num_tokens > 1;
    const int64_t length = expanded_length(sequence);
    const bool ends = begin + num_tokens >= length;
    FoundPrefix prefix;
    if (begin == sequence.num_published * kPageTokens) prefix = {sequence.last_node, begin};
    if (ends && (prefix.node == 0 ? !in_parts : room_.has_in_use(prefix))) return;
    sequence.expanded = room_.take(length, prefix);
}

// Tokens of a sequence. What earlier chunks have expanded is known of those that are complete or
// planned, not of one that was planned ahead and dropped.
Scheduler::Chunk Scheduler::chunk_of(Sequence& sequence, int64_t begin, int64_t num_tokens) {
    Chunk chunk{.sequence = &sequence, .begin = begin, .num_tokens = num_tokens};
    if (begin >= expanded_length(sequence)) return chunk;
    if (sequence.expanded.num_layers == 0) take_room(sequence, begin, num_tokens);
    chunk.expanded = sequence.expanded;
    if (sequence.chunk >= 0)
        if (const Chunk& planned = chunks_[static_cast<size_t>(sequence.chunk)];
            planned.expanded.num_layers > 0)
            chunk.expanded.num_expanded = planned.end();
    return chunk;
}

void Scheduler::plan_chunk(const Chunk& chunk) {
    chunk.sequence->chunk = static_cast<int64_t>(chunks_.size());
    chunks_.push_back(chunk);
}

void Scheduler::plan_chunk_ahead(const Chunk& chunk) {
    chunk.sequence->is_ahead = true;
    ahead_.push_back(chunk);
}

void Scheduler::clear_chunks() {
    for (const Chunk& chunk : chunks_)
        if (chunk.sequence != nullptr) chunk.sequence->chunk = -1;
    chunks_.clear();
}

void Scheduler::clear_ahead() {
    for (const Chunk& chunk : ahead_) chunk.sequence->is_ahead = false;
    ahead_.clear();
}

// One row of each sequence that has one left, then their drafts.
void Scheduler::take_next_tokens(bool prompts_too, int64_t& budget) {
    for (size_t i = 0; i < running_.size(); ++i) {
        Sequence& sequence = *running_[i];
        if (sequence.length() - sequence.num_computed != 1 || sequence.chunk >= 0) continue;
        if (!prompts_too && sequence.num_computed < sequence.prompt_length) continue;
        if (!reserve_pages(sequence, sequence.length())) break;
        plan_chunk(chunk_of(sequence, sequence.num_computed, 1));
        --budget;
    }
    for (Chunk& chunk : chunks_)
        if (chunk.end() == chunk.sequence->length()) take_drafts(chunk, budget);
}

// The drafts behind a chunk that ends with its sequence's last token, as many as there is room for;
// the others go. A page for each running sequence's next token stays free.
void Scheduler::take_drafts(Chunk& chunk, int64_t& budget) {
    Sequence& sequence = *chunk.sequence;
    int64_t num = std::min(sequence.num_drafts, std::max<int64_t>(budget, 0));
    const auto num_pages = static_cast<int64_t>(sequence.pages.size());
    if (pages_needed(chunk.end() + num) - num_pages > pages_.num_available() - num_running())
        num = std::min(num, num_pages * kPageTokens - chunk.end());
    sequence.tokens.resize(static_cast<size_t>(chunk.end() + num));
    sequence.num_drafts = num;
    reserve_pages(sequence, chunk.end() + num);
    chunk.num_tokens += num;
    budget -= num;
}

const StepPlan& Scheduler::plan_generated() {
    FERRY_CHECK(ahead_.empty(), "{} chunks were planned ahead", ahead_.size());
    clear_chunks();
    int64_t budget = options_.max_batch_tokens;
    take_next_tokens(false, budget);
    lay_out_rows(chunks_, plan_);
    plan_.num_begun = 0;
    return plan_;
}

bool Scheduler::only_generates_next(std::vector<int64_t>& num_keys) const {
    num_keys.clear();
    for (const Sequence* sequence : running_) {
        const int64_t length = sequence->length();
        const int64_t end = planned_end(*sequence);
        if (end < length && (end < length - 1 || end < sequence->prompt_length)) return false;
        if (ends_with_this_step(*sequence)) continue;
        // This step gives one token at least, and one more for each draft that it computes.
        const int64_t first = end < length ? end + 1 : length + 1;
        const int64_t num_drafts =
            std::clamp<int64_t>(sequence->max_length - first - 1, 0, options_.max_drafts);
        const int64_t last = std::min(std::max(first, end + 1) + num_drafts, sequence->max_length);
        for (int64_t row = 0; row <= num_drafts; ++row) num_keys.push_back(last - row);
    }
    if (const auto most = static_cast<size_t>(options_.max_logit_rows()); num_keys.size() > most) {
        std::ranges::sort(num_keys, std::greater<>());  // which of them is not known
        num_keys.resize(most);
    }
    const bool may_start = num_running() < options_.max_batch && pages_.num_available() > 0;
    return waiting_.empty() || !may_start;
}

const StepPlan& Scheduler::plan() {
    clear_chunks();
    int64_t budget = options_.max_batch_tokens;
    for (const Chunk& chunk : ahead_) {
        plan_chunk(chunk);
        budget -= chunk.num_tokens;
    }
    // Generating sequences first.
    take_next_tokens(true, budget);
    // Then prompts (and recomputation) of running sequences, then new ones, by arrival.
    extend_last_ahead(budget);
    const auto take_chunk = [&](Sequence& sequence) {
        const int64_t left = sequence.length() - sequence.num_computed;
        const int64_t num = std::min({left, budget, options_.max_prefill_chunk});
        if (num <= 0 || !reserve_pages(sequence, sequence.num_computed + num)) return false;
        plan_chunk(chunk_of(sequence, sequence.num_computed, num));
        budget -= num;
        return true;
    };
    for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
        Sequence& sequence = *running_[i];
        if (sequence.length() - sequence.num_computed > 1 &&
            planned_end(sequence) == sequence.num_computed && !take_chunk(sequence))
            break;
    }
    // Prompts are laid out first: not before generated tokens that were begun ahead.
    const bool may_start = ahead_.empty() || ahead_.back().begin < ahead_.back().prompt_length();
    while (may_start && !waiting_.empty() && budget > 0 && num_running() < options_.max_batch) {
        Sequence& sequence = *waiting_.front();
        if (!admit(sequence)) break;
        start(sequence);
        if (!take_chunk(sequence)) break;
    }
    lay_out_rows(chunks_, plan_);
    plan_.num_begun = 0;
    for (const Chunk& chunk : ahead_) plan_.num_begun += chunk.num_tokens;
    clear_ahead();
    return plan_;
}

// The first of those that wait, once admitted.
void Scheduler::start(Sequence& sequence) {
    waiting_.pop_front();
    num_waiting_prompt_rows_ -= sequence.prompt_length;
    running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence,
                                     [](const Sequence* a, const Sequence* b) {
                                         return a->arrival < b->arrival;
                                     }),
                    &sequence);
}

// How far the sequence is computed when the planned step is done.
int64_t Scheduler::planned_end(const Sequence& sequence) const {
    return sequence.chunk < 0 ? sequence.num_computed
                              : chunks_[static_cast<size_t>(sequence.chunk)].end();
}

// The token that the planned step gives is the last one.
bool Scheduler::ends_with_this_step(const Sequence& sequence) const {
    const int64_t length = sequence.length();
    return planned_end(sequence) == length && length + 1 >= sequence.max_length;
}

// Some running sequence has yet to publish a page that this one could take over.
bool Scheduler::will_find_pages(const Sequence& sequence) const {
    if (!pages_.shares_prefixes() || sequence.prompt_length <= kPageTokens) return false;
    return std::ranges::any_of(running_, [&](const Sequence* other) {
        return other->prompt_length >= (other->num_published + 1) * kPageTokens &&
               std::equal(other->tokens.begin(), other->tokens.begin() + kPageTokens,
                          sequence.tokens.begin());
    });
}

int64_t Scheduler::num_prompt_rows_left() const {
    int64_t num = num_waiting_prompt_rows_;
    for (const Sequence* sequence : running_)
        num += std::max<int64_t>(0, sequence->prompt_length - planned_end(*sequence));
    return num;
}

bool Scheduler::take_ahead(Sequence& sequence, int64_t begin, int64_t& budget) {
    const int64_t num =
        std::min({sequence.prompt_length - begin, budget, options_.max_prefill_chunk});
    // A page for each running sequence's next token stays free.
    const int64_t missing = pages_needed(begin + num) - static_cast<int64_t>(sequence.pages.size());
    if (num <= 0 || missing > pages_.num_available() - num_running()) return false;
    if (!reserve_pages(sequence, begin + num)) return false;
    plan_chunk_ahead(chunk_of(sequence, begin, num));
    budget -= num;
    return true;
}

const StepPlan& Scheduler::plan_ahead() {
    clear_ahead();
    int64_t budget = options_.max_batch_tokens;
    for (const Sequence* sequence : running_)  // their next token's row
        if (planned_end(*sequence) >= sequence->prompt_length && !ends_with_this_step(*sequence))
            --budget;
    bool all_fit = true;
    for (size_t i = 0; i < running_.size() && all_fit && budget > 0; ++i)
        if (const int64_t end = planned_end(*running_[i]); end < running_[i]->prompt_length)
            all_fit = take_ahead(*running_[i], end, budget);
    while (all_fit && !waiting_.empty() && budget > 0 && num_running() < options_.max_batch) {
        Sequence& sequence = *waiting_.front();
        const int64_t most_pages =
            pages_needed(std::min(sequence.prompt_length, budget)) + num_running() + 1;
        if (most_pages > pages_.num_available() || will_find_pages(sequence) || !admit(sequence))
            break;
        start(sequence);
        all_fit = take_ahead(sequence, sequence.num_computed, budget);
    }
    lay_out_rows(ahead_, ahead_plan_);
    return ahead_plan_;
}

const StepPlan& Scheduler::plan_more_ahead() {
    const bool prompts = !ahead_.empty() && ahead_.front().begin < ahead_.front().prompt_length();
    if (prompts || num_prompt_rows_left() > 0) return ahead_plan_;
    int64_t budget = options_.max_batch_tokens - num_running();  // for drafts
    for (const Chunk& chunk : ahead_) budget -= chunk.num_tokens - 1;
    for (Sequence* sequence : running_) {
        const int64_t length = sequence->length();
        if (length - sequence->num_computed != 1 || sequence->chunk >= 0 || sequence->is_ahead)
            continue;
        if (pages_needed(length) > static_cast<int64_t>(sequence->pages.size()) &&
            pages_.num_available() <= num_running())
            break;
        reserve_pages(*sequence, length);
        plan_chunk_ahead(chunk_of(*sequence, length - 1, 1));
        take_drafts(ahead_.back(), budget);
    }
    lay_out_rows(ahead_, ahead_plan_);
    return ahead_plan_;
}

// Chunks that were planned ahead are fixed, but for the last one's end.
void Scheduler::extend_last_ahead(int64_t& budget) {
    if (ahead_.empty()) return;
    const Chunk last = ahead_.back();
    Sequence& sequence = *last.sequence;
    const int64_t num = std::min(
        {sequence.length() - last.end(), budget, options_.max_prefill_chunk - last.num_tokens});
    if (num <= 0 || !reserve_pages(sequence, last.end() + num)) return;
    if (sequence.chunk >= 0) chunks_[static_cast<size_t>(sequence.chunk)].num_tokens += num;
    budget -= num;
}

void Scheduler::add_rows(const Chunk& chunk, int64_t begin, int64_t end,
                         const ExpandedPrompt& expanded, StepPlan& plan,
                         std::vector<SequenceRows>& list, std::vector<Sequence*>& sequences) {
    if (begin >= end) return;
    const Sequence& sequence = *chunk.sequence;
    sequences.push_back(chunk.sequence);
    list.push_back({.first_row = static_cast<int64_t>(plan.tokens.size()),
                    .num_rows = end - begin,
                    .first_position = begin,
                    .pages = sequence.pages,
                    .expanded = expanded});
    for (int64_t position = begin; position < end; ++position) {
        plan.tokens.push_back(sequence.tokens[static_cast<size_t>(position)]);
        plan.positions.push_back(static_cast<int32_t>(position));
        plan.slots.push_back(sequence.pages[static_cast<size_t>(position / kPageTokens)] *
                                 kPageTokens +
                             position % kPageTokens);
    }
}

void Scheduler::lay_out_rows(std::span<const Chunk> chunks, StepPlan& plan) const {
    plan.tokens.clear();
    plan.positions.clear();
    plan.slots.clear();
    plan.prompt.clear();
    plan.generated.clear();
    plan.prompt_sequences.clear();
    plan.generated_sequences.clear();
    plan.logit_rows.clear();
    plan.logit_sequences.clear();
    // Of its sequence's last token and the drafts behind it.
    const auto wants_logits = [&](const Chunk& chunk) {
        const auto end = static_cast<int64_t>(plan.tokens.size());
        for (int64_t row = end - (chunk.end() - chunk.sequence->length()) - 1; row < end; ++row) {
            plan.logit_rows.push_back(static_cast<int32_t>(row));
            plan.logit_sequences.push_back(chunk.sequence);
        }
    };
    for (const Chunk& chunk : chunks) {
        const Sequence& sequence = *chunk.sequence;
        if (chunk.begin >= sequence.prompt_length) continue;
        const int64_t end = std::min(chunk.end(), sequence.prompt_length);
        const int64_t dense = std::clamp(options_.expanded_positions, chunk.begin, end);
        add_rows(chunk, chunk.begin, dense, chunk.expanded, plan, plan.prompt,
                 plan.prompt_sequences);
        add_rows(chunk, dense, end, {}, plan, plan.prompt, plan.prompt_sequences);
        if (chunk.end() <= sequence.prompt_length) wants_logits(chunk);
    }
    for (const Chunk& chunk : chunks) {
        const Sequence& sequence = *chunk.sequence;
        if (chunk.end() <= sequence.prompt_length) continue;
        add_rows(chunk, std::max(chunk.begin, sequence.prompt_length), chunk.end(), {}, plan,
                 plan.generated, plan.generated_sequences);
        wants_logits(chunk);
    }
}

void Scheduler::publish_prompt_pages(Sequence& sequence) {
    const int64_t full = std::min(sequence.num_computed, sequence.prompt_length) / kPageTokens;
    for (; sequence.num_published < full; ++sequence.num_published)
        sequence.last_node = pages_.publish(
            sequence.pages[static_cast<size_t>(sequence.num_published)], sequence.last_node,
            {sequence.tokens.data() + sequence.num_published * kPageTokens, kPageTokens});
}

void Scheduler::complete(const Chunk& chunk) {
    Sequence& sequence = *chunk.sequence;
    sequence.num_computed = chunk.end();
    if (chunk.expanded.num_layers > 0) sequence.expanded.num_expanded = chunk.end();
    if (chunk.end() >= expanded_length(sequence)) room_.release(sequence.expanded);
    publish_prompt_pages(sequence);
}

void Scheduler::reject_drafts(Sequence& sequence) {
    if (sequence.num_drafts == 0) return;
    const int64_t length = sequence.length();
    sequence.tokens.resize(static_cast<size_t>(length));
    sequence.num_drafts = 0;
    sequence.num_computed = std::min(sequence.num_computed, length);
    forget(plan_.logit_sequences, sequence);
    if (sequence.chunk < 0) return;
    Chunk& chunk = chunks_[static_cast<size_t>(sequence.chunk)];
    chunk.num_tokens = std::min(chunk.num_tokens, length - chunk.begin);
}

void Scheduler::complete(Sequence& sequence) {
    if (sequence.chunk < 0) return;
    Chunk& chunk = chunks_[static_cast<size_t>(sequence.chunk)];
    complete(chunk);
    chunk.sequence = nullptr;
    sequence.chunk = -1;
}

void Scheduler::complete() {
    for (const Chunk& chunk : chunks_)
        if (chunk.sequence != nullptr) complete(chunk);
    clear_chunks();
}

void Scheduler::finish(Sequence& sequence) {
    if (std::erase(running_, &sequence) == 0 && std::erase(waiting_, &sequence) > 0)
        num_waiting_prompt_rows_ -= sequence.prompt_length;
    if (sequence.chunk >= 0) chunks_[static_cast<size_t>(sequence.chunk)].sequence = nullptr;
    sequence.chunk = -1;
    if (sequence.is_ahead) clear_ahead();
    for (std::vector<Sequence*>* list :
         {&plan_.logit_sequences, &plan_.prompt_sequences, &plan_.generated_sequences})
        forget(*list, sequence);
    release_pages(sequence);
}

}  // namespace ferry
