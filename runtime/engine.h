// [10] The engine of one attention rank: takes requests as it has room, runs steps, gives
// completions.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/attention_worker.h"
#include "runtime/draft_rounds.h"
#include "runtime/request.h"
#include "runtime/scheduler.h"
#include "runtime/token_chooser.h"
#include "runtime/tokenizer.h"

namespace ferry {

struct EngineOptions {
    SchedulerOptions scheduler;
    int64_t num_pages = 64;      // of the latent cache, 64 tokens each
    int64_t max_context = 4096;  // longest prompt with its output
    int64_t expanded_bytes = 0;  // at most, for prompts that stay expanded from chunk to chunk
    bool share_prefixes = true;
    bool cuda_graphs = true;
    double draft_acceptance = 0;  // DraftRecord's least rate
};

// What such an engine's attention worker has to hold.
WorkerLimits worker_limits(const EngineOptions& options);

class Engine {
  public:
    // `eos_tokens` end a text unless a request ignores them. Without a tokenizer completions have
    // no text, and stop strings are refused. `kernels`, `model`, `fabric` and `experts` (null when
    // this rank has none) must outlive the engine. Allocates all that steps need.
    Engine(Kernels& kernels, const Transformer& model, RankFabric& fabric, ExpertWorker* experts,
           const EngineOptions& options, std::vector<int32_t> eos_tokens,
           std::optional<Tokenizer> tokenizer);
    ~Engine();

    // Takes a request into the queue; one that can never run is finished at once, with its reason.
    void submit(Request request);
    // How many requests, submitted now, would be among the next to run (for ranks that claim work
    // as they have room).
    int64_t room_left() const { return scheduler_.room_left(); }
    // One step; returns whether another follows. With several attention ranks all of them step
    // together, with no rows if they have none, until none has work or `more_coming` (requests that
    // it may still submit): what they say rides on the exchange, so the last step is an empty one.
    bool step(bool more_coming = false);
    // A step with no rows, while there is nothing to do: expert ranks see that this one is alive.
    void step_idly();
    // Takes the step that others may count on (AttentionWorker::next_form), if any, with no rows:
    // before the exchange is closed.
    void settle();
    // With several attention ranks: tells all of them, with the next step, that this rank was asked
    // to stop.
    void announce_stop() { stopping_ = true; }
    // Some rank did, as of the last step.
    bool stop_announced() const { return stop_announced_; }
    // Completions since the last call, in the order in which they finished.
    std::vector<Completion> take_finished();
    // Drops every request that is not finished.
    void cancel_all();

    // Called with each new token and the text that it completes (of whole characters, stop strings
    // held back).
    using TokenCallback =
        std::function<void(const Request& request, int32_t token, std::string_view text)>;
    void set_token_callback(TokenCallback callback) { on_token_ = std::move(callback); }

    // Called for each token as soon as it is chosen, whether or not there is a text.
    using TokenHook = std::function<void(const Request& request, int32_t token)>;
    void set_token_hook(TokenHook hook) { on_choice_ = std::move(hook); }

    // Adds at most `max` draft tokens to the end of a request's tokens and returns how many:
    // instead of PromptLookup, where no module of the model drafts. The same bits come of it on the
    // CPU whatever they are.
    using Drafter =
        std::function<int64_t(const Request& request, std::vector<int32_t>& tokens, int64_t max)>;
    void set_drafter(Drafter drafter) { drafter_ = std::move(drafter); }
    // Called with a request's tokens so far and the drafts behind them, when there are some.
    using DraftHook = std::function<void(const Request& request, std::span<const int32_t> tokens,
                                         std::span<const int32_t> drafts)>;
    void set_draft_hook(DraftHook hook) { on_drafts_ = std::move(hook); }

    // Rows of the last step: of prompts (and what is computed again), of generated tokens and
    // drafts, and those of both whose logits were wanted; and how many tokens came of it.
    struct StepRows {
        int64_t prompt = 0;
        int64_t generated = 0;
        int64_t wanted = 0;
        int64_t chosen = 0;
    };
    StepRows last_step() const { return last_step_; }
    // Decode steps that a GPU was given as a whole, or why there are none.
    StepGraphs::Counts step_counts() const { return worker_.step_counts(); }
    std::string_view why_no_step_is_repeated() const { return worker_.why_no_step_is_repeated(); }
    // Nothing that was computed before is found again. No request may be unfinished.
    void forget_prefixes();

    int64_t num_unfinished() const { return static_cast<int64_t>(active_.size()); }
    int64_t num_running() const { return scheduler_.num_running(); }
    int64_t num_waiting() const { return scheduler_.num_waiting(); }
    int64_t num_generated_tokens() const { return num_generated_tokens_; }
    int64_t num_computed_tokens() const { return num_computed_tokens_; }
    int64_t num_preemptions() const { return scheduler_.num_preemptions(); }
    // Draft tokens that were computed, and those of them that were right.
    int64_t num_drafts() const { return num_drafts_; }
    int64_t num_accepted_drafts() const { return num_accepted_drafts_; }
    const PromptRoom& prompt_room() const { return scheduler_.room(); }
    int64_t num_prefix_hits() const { return pages_.num_found(); }
    const PageAllocator& pages() const { return pages_; }
    int64_t cache_bytes() { return static_cast<int64_t>(worker_.cache().size_bytes()); }

  private:
    struct Active;
    std::string refusal(const Request& request) const;
    void note_drafts();
    AttentionWorker::StepOptions step_options(bool busy);
    void choose_tokens(const Tensor& logits, int64_t begin, int64_t end);
    SampleInput sample_input(const Active& active, int64_t length) const;
    void take_token(Active& active, const SampledToken& sampled);
    void propose(Active& active);
    void draft();
    bool append_token(Active& active, int32_t token);
    void finish(Active& active, FinishReason reason, const std::string& error = {});

    const Transformer& model_;
    RankFabric& fabric_;
    EngineOptions options_;
    std::vector<int32_t> eos_tokens_;
    std::optional<Tokenizer> tokenizer_;
    PageAllocator pages_;
    AttentionWorker worker_;
    Scheduler scheduler_;
    const StepPlan* plan_ = nullptr;  // of the step under way
    int64_t num_chosen_ = 0;          // leading logit rows of it whose tokens are chosen
    TokenChooser chooser_;
    std::vector<int64_t> next_keys_;               // of the rows that the next step may have
    std::vector<std::unique_ptr<Active>> active_;  // by arrival
    size_t num_started_ = 0;                       // leading ones of active_ that had pages once
    std::vector<Completion> finished_;
    bool stopping_ = false;
    bool stop_announced_ = false;
    TokenCallback on_token_;
    TokenHook on_choice_;
    Drafter drafter_;
    DraftHook on_drafts_;
    const SamplingParams greedy_{.logprobs = 0};  // of drafts
    std::optional<DraftRounds> draft_rounds_;     // if the model's own module drafts
    StepRows last_step_;
    int64_t next_arrival_ = 0;
    int64_t num_generated_tokens_ = 0;
    int64_t num_drafts_ = 0, num_accepted_drafts_ = 0;
    int64_t num_computed_tokens_ = 0;
};

}  // namespace ferry
