// [11] Which tokens the next step computes. Plain bookkeeping: no model, no files, no clock.
//
// Continuous batching: every step takes the next token of each running sequence that is generating,
// and fills the rest of its token budget with chunks of prompts, in order of arrival. When pages
// run out, the sequence that arrived last gives up its pages and is recomputed later (same bits,
// DESIGN 4.1). The oldest sequence always goes on, so all finish.
//
// Speculative decoding (https://arxiv.org/abs/2211.17192): draft tokens behind a sequence's own are
// computed with its next one, as far as rows and free pages go, and each gives logits too. Those
// that turn out to be right have taken no step of their own.
#pragma once
#include <algorithm>
#include <array>
#include <deque>
#include <limits>
#include <vector>

#include "layers/batch.h"
#include "runtime/page_allocator.h"
#include "runtime/prompt_room.h"

namespace ferry {

constexpr int64_t kMostDrafts = 16;  // of one sequence in one step

struct Sequence {
    int64_t arrival = 0;          // order of arrival, unique
    std::vector<int32_t> tokens;  // prompt, then generated, then drafts
    int64_t num_drafts = 0;
    std::array<uint8_t, kMostDrafts> draft_classes{};  // of the module's (DraftRecord)
    int64_t prompt_length = 0;
    int64_t max_length = 0;  // prompt and generated

    // Owned by the scheduler:
    int64_t num_computed = 0;  // leading tokens whose latents are in the cache
    std::vector<int32_t> pages;
    ExpandedPrompt expanded;    // its place in the PromptRoom
    int64_t num_published = 0;  // leading pages known to the prefix cache
    int64_t last_node = 0;      // prefix node of the last of them
    int64_t num_preemptions = 0;
    int64_t num_prefix_tokens = 0;  // prompt tokens found in the prefix cache at admission
    int64_t chunk = -1;             // of the planned step: which is of this sequence; -1: none
    bool is_ahead = false;          // the next plan begins with some of its tokens

    // Without drafts.
    int64_t length() const { return static_cast<int64_t>(tokens.size()) - num_drafts; }
};

struct SchedulerOptions {
    int64_t max_batch = 32;            // running sequences
    int64_t max_batch_tokens = 512;    // rows of one step; at least max_batch
    int64_t max_prefill_chunk = 4096;  // rows of one sequence's prompt in one step
    int64_t max_drafts = 0;            // of one sequence in one step
    // Prompt rows from here on are SequenceRows of their own (KvExpansion).
    int64_t expanded_positions = std::numeric_limits<int64_t>::max();
    int64_t num_parts = 1;           // micro-batches, into which the rows of a step are cut
    int64_t num_expanded_units = 0;  // PromptRoom, of a model of so many layers
    int64_t num_layers = 0;

    // Most rows of a step whose logits are wanted.
    int64_t max_logit_rows() const {
        return std::min(max_batch * (1 + max_drafts), max_batch_tokens);
    }
};

// One step's rows, prompt rows first. Arrays are reused from step to step.
struct StepPlan {
    std::vector<int32_t> tokens, positions;
    std::vector<int64_t> slots;
    std::vector<SequenceRows> prompt, generated;
    std::vector<int32_t> logit_rows;
    // Whose next token each logit row gives; null: nobody's, as the sequence is done or the row is
    // of a draft that is not right.
    std::vector<Sequence*> logit_sequences;
    // Whose rows those of `prompt` and `generated` are; null: of one that is done.
    std::vector<Sequence*> prompt_sequences, generated_sequences;
    int64_t num_begun = 0;  // leading rows that were planned ahead

    StepBatch batch() const;
    bool empty() const { return tokens.empty(); }
};

class Scheduler {
  public:
    Scheduler(const SchedulerOptions& options, PageAllocator& pages);

    // Pages that a sequence needs at its longest; more than the cache has: it can never run.
    static int64_t pages_needed(int64_t max_length);

    // The caller keeps the sequence alive until `finish`.
    void add(Sequence& sequence);
    // Rows for the next step; empty when there is nothing to do. Valid until the next call.
    const StepPlan& plan();
    // The same, of the next tokens of sequences that are generating only.
    const StepPlan& plan_generated();
    // While a planned step is under way: how many keys each row has that plan_generated() may give
    // next, whatever tokens this one gives. False: others want to be computed next.
    bool only_generates_next(std::vector<int64_t>& num_keys) const;
    // While a planned step is under way: rows with which the next plan will begin whatever tokens
    // this one gives, chunks of prompts. They take no pages from others. Valid until the plan after
    // the next; when a sequence of it is finished or preempted before, that plan begins with none.
    const StepPlan& plan_ahead();
    // The same plan, with the next tokens of sequences that are complete already added to it, when
    // the next step computes no prompt.
    const StepPlan& plan_more_ahead();
    // Prompt rows that are not in the plan: plan_ahead() gives no more than that.
    int64_t num_prompt_rows_left() const;
    // The planned step is done: its latents are in the cache.
    void complete();
    // One sequence of it is done before the others.
    void complete(Sequence& sequence);
    // Most drafts that may follow a sequence's tokens now: the last of them would give its last
    // token. They are added to the end of its `tokens`, once the one before is there.
    int64_t max_drafts(const Sequence& sequence) const {
        return std::clamp<int64_t>(sequence.max_length - sequence.length() - 1, 0,
                                   options_.max_drafts);
    }
    // Some draft is not right: takes all off, and what was computed of them.
    void reject_drafts(Sequence& sequence);
    // Takes a sequence out and gives its pages back, wherever it stands.
    void finish(Sequence& sequence);
    // The pages know no prefix any more; no sequence may be unfinished.
    void forget_prefixes() { room_.forget(); }

    int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
    int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
    // More that may run beside those that are here.
    int64_t room_left() const {
        return std::max<int64_t>(0, options_.max_batch - num_running() - num_waiting());
    }
    int64_t num_preemptions() const { return num_preemptions_; }
    const PromptRoom& room() const { return room_; }

  private:
    struct Chunk {
        Sequence* sequence;
        int64_t begin;
        int64_t num_tokens;
        ExpandedPrompt expanded{};

        int64_t end() const { return begin + num_tokens; }
        int64_t prompt_length() const { return sequence->prompt_length; }
    };
    void take_room(Sequence& sequence, int64_t begin, int64_t num_tokens);
    Chunk chunk_of(Sequence& sequence, int64_t begin, int64_t num_tokens);
    void plan_chunk(const Chunk& chunk);
    void plan_chunk_ahead(const Chunk& chunk);
    void clear_chunks();
    void clear_ahead();
    void complete(const Chunk& chunk);
    void take_next_tokens(bool prompts_too, int64_t& budget);
    void take_drafts(Chunk& chunk, int64_t& budget);
    bool admit(Sequence& sequence);
    bool reserve_pages(Sequence& sequence, int64_t length);
    bool preempt_after(const Sequence& sequence);
    bool take_ahead(Sequence& sequence, int64_t begin, int64_t& budget);
    void extend_last_ahead(int64_t& budget);
    int64_t planned_end(const Sequence& sequence) const;
    bool ends_with_this_step(const Sequence& sequence) const;
    bool will_find_pages(const Sequence& sequence) const;
    void start(Sequence& sequence);
    void release_pages(Sequence& sequence);
    void publish_prompt_pages(Sequence& sequence);
    void lay_out_rows(std::span<const Chunk> chunks, StepPlan& plan) const;
    static void add_rows(const Chunk& chunk, int64_t begin, int64_t end,
                         const ExpandedPrompt& expanded, StepPlan& plan,
                         std::vector<SequenceRows>& list, std::vector<Sequence*>& sequences);
    // Positions of a prompt whose keys and values are expanded.
    int64_t expanded_length(const Sequence& sequence) const {
        return std::min(sequence.prompt_length, options_.expanded_positions);
    }

    SchedulerOptions options_;
    PageAllocator& pages_;
    PromptRoom room_;
    std::deque<Sequence*> waiting_;   // by arrival, preempted ones in front
    std::vector<Sequence*> running_;  // by arrival
    std::vector<Chunk> chunks_;       // of the planned step; of no sequence: it is complete already
    std::vector<Chunk> ahead_;        // of the next plan
    StepPlan plan_, ahead_plan_;
    int64_t num_waiting_prompt_rows_ = 0;
    int64_t num_preemptions_ = 0;
};

}  // namespace ferry
