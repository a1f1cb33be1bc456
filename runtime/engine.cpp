#include "runtime/engine.h"

#include <algorithm>
#include <chrono>

#include "base/trace_marks.h"
#include "runtime/prompt_lookup.h"
#include "runtime/stop_strings.h"

namespace ferry {
namespace {

using Clock = std::chrono::steady_clock;

// What attention ranks say to each other with every step.
constexpr uint32_t kBusy = 1;
constexpr uint32_t kStopping = 2;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Of prompts that may stay expanded at once. A step leaves some for the next one, as many chunks of
// the longest kind as it has and the one that its budget cuts; and there may be one that others go
// on from. Where a step is computed in parts, all of its prompts and those that were planned ahead.
int64_t most_expanded_positions(const EngineOptions& options) {
    const SchedulerOptions& steps = options.scheduler;
    const int64_t unfinished =
        std::min(steps.max_batch, steps.max_batch_tokens / steps.max_prefill_chunk + 1) +
        (options.share_prefixes ? 1 : 0);
    const int64_t of_steps = steps.num_parts > 1 ? 2 * steps.max_batch_tokens : 0;
    return unfinished * options.max_context + of_steps;
}

SchedulerOptions with_room(SchedulerOptions options, const AttentionWorker& worker,
                           const ModelConfig& model) {
    options.num_expanded_units = worker.num_expanded_units();
    options.num_layers = model.n_layers;
    options.expanded_positions = worker.expanded_positions();
    return options;
}

}  // namespace

WorkerLimits worker_limits(const EngineOptions& options) {
    return {.max_tokens = options.scheduler.max_batch_tokens,
            .max_sequences = options.scheduler.max_logit_rows(),
            .max_context = options.max_context,
            .max_logit_rows = options.scheduler.max_logit_rows(),
            .num_pages = options.num_pages,
            .expanded_bytes = options.expanded_bytes,
            .expanded_positions = most_expanded_positions(options),
            .cuda_graphs = options.cuda_graphs};
}

// A request in the engine. The scheduler sees the Sequence.
struct Engine::Active : Sequence {
    Request request;
    uint64_t id_hash = 0;
    std::vector<int32_t> stop_tokens;  // of the request, and end of sentence unless ignored
    std::optional<StopStrings> stop_strings;
    std::optional<StreamDecoder> decoder;  // when text is wanted token by token
    size_t num_shown_bytes = 0;
    bool started = false;
    std::vector<float> logprobs;
    std::vector<TokenLogprob> top_logprobs;
    PromptLookup lookup;
    int64_t num_planned_drafts = 0;  // of the step under way
    Clock::time_point submitted = Clock::now();
    RequestTimings timings;

    int64_t num_generated() const { return length() - prompt_length; }
};

Engine::Engine(Kernels& kernels, const Transformer& model, RankFabric& fabric,
               ExpertWorker* experts, const EngineOptions& options, std::vector<int32_t> eos_tokens,
               std::optional<Tokenizer> tokenizer)
    : model_(model),
      fabric_(fabric),
      options_(options),
      eos_tokens_(std::move(eos_tokens)),
      tokenizer_(std::move(tokenizer)),
      pages_(options.num_pages, options.share_prefixes),
      worker_(kernels, model, fabric, experts, worker_limits(options)),
      scheduler_(with_room(options.scheduler, worker_, model.config()), pages_),
      chooser_(kernels, model.config().vocab_size, options.scheduler.max_logit_rows()) {
    if (options.scheduler.max_drafts > 0 && model.config().n_mtp_layers > 0)
        draft_rounds_.emplace(options.scheduler, options.draft_acceptance);
    next_keys_.reserve(
        static_cast<size_t>(options.scheduler.max_batch * (1 + options.scheduler.max_drafts)));
}

Engine::~Engine() = default;

// Why a request can never run; empty when it can.
std::string Engine::refusal(const Request& request) const {
    const int64_t prompt = static_cast<int64_t>(request.prompt_tokens.size());
    if (prompt == 0) return "the prompt has no tokens";
    for (int32_t token : request.prompt_tokens)
        if (token < 0 || token >= model_.config().vocab_size)
            return fmt::format("prompt token {} is outside the vocabulary of {}", token,
                               model_.config().vocab_size);
    const int64_t longest = prompt + request.sampling.max_tokens;
    if (longest > options_.max_context)
        return fmt::format(
            "{} prompt tokens and max_tokens {} exceed the longest context of {} ({})", prompt,
            request.sampling.max_tokens, options_.max_context,
            options_.max_context == options_.num_pages * kPageTokens
                ? "all that the cache holds: engine.cache_gib"
                : "engine.max_context");
    if (Scheduler::pages_needed(longest) > options_.num_pages)
        return fmt::format(
            "{} prompt tokens and max_tokens {} need {} cache pages of 64 tokens, there are {} "
            "(engine.cache_gib)",
            prompt, request.sampling.max_tokens, Scheduler::pages_needed(longest),
            options_.num_pages);
    if (!request.sampling.stop.empty() && !tokenizer_)
        return "stop strings need a tokenizer, and the model has none";
    return {};
}

void Engine::submit(Request request) {
    if (const std::string reason = refusal(request); !reason.empty()) {
        finished_.push_back(failed_completion(request, reason));
        return;
    }
    auto active = std::make_unique<Active>();
    const SamplingParams& sampling = request.sampling;
    active->arrival = next_arrival_++;
    active->tokens = request.prompt_tokens;
    active->prompt_length = static_cast<int64_t>(active->tokens.size());
    active->max_length = active->prompt_length + sampling.max_tokens;
    active->id_hash = hash_request_id(request.id.text);
    active->stop_tokens = sampling.stop_token_ids;
    if (!sampling.ignore_eos)
        active->stop_tokens.insert(active->stop_tokens.end(), eos_tokens_.begin(),
                                   eos_tokens_.end());
    // Texts leave special tokens out: one that is to stop is found by its id.
    for (const std::string& stop : sampling.stop)
        if (const std::optional<int32_t> id = tokenizer_->token_id(stop);
            id && tokenizer_->is_special(*id))
            active->stop_tokens.push_back(*id);
    if (!sampling.stop.empty()) active->stop_strings.emplace(sampling.stop);
    if (tokenizer_ && (active->stop_strings || on_token_)) active->decoder.emplace(*tokenizer_);
    if (sampling.logprobs) {
        active->logprobs.reserve(static_cast<size_t>(sampling.max_tokens));
        active->top_logprobs.reserve(static_cast<size_t>(sampling.max_tokens * *sampling.logprobs));
    }
    active->request = std::move(request);
    if (active->request.sampling.max_tokens == 0) {
        Active& nothing_to_do = *active;
        active_.push_back(std::move(active));
        finish(nothing_to_do, FinishReason::length);
        return;
    }
    scheduler_.add(*active);
    active_.push_back(std::move(active));
}

bool Engine::step(bool more_coming) {
    const bool awaited = worker_.next_form().num_rows > 0;  // by other ranks, in that form
    {
        ScopedZone zone(Zone::schedule);
        plan_ = awaited ? &scheduler_.plan_generated() : &scheduler_.plan();
    }
    last_step_ = {};
    const bool alone = fabric_.layout().num_attention() == 1;
    if (plan_->empty() && alone && !awaited) return num_unfinished() > 0 || more_coming;
    for (; num_started_ < active_.size() && !active_[num_started_]->pages.empty(); ++num_started_) {
        Active& active = *active_[num_started_];
        active.started = true;
        active.timings.queue_s = seconds_since(active.submitted);
    }
    for (const SequenceRows& rows : plan_->prompt) last_step_.prompt += rows.num_rows;
    last_step_.generated = static_cast<int64_t>(plan_->tokens.size()) - last_step_.prompt;
    last_step_.wanted = static_cast<int64_t>(plan_->logit_rows.size());
    num_computed_tokens_ += static_cast<int64_t>(plan_->tokens.size());
    num_chosen_ = 0;
    note_drafts();
    const int64_t num_before = num_generated_tokens_;
    const auto [logits, agreed] =
        worker_.step(plan_->batch(), step_options(num_unfinished() > 0 || more_coming));
    stop_announced_ = (agreed.any & kStopping) != 0;
    choose_tokens(logits.slice_rows(num_chosen_, logits.rows() - num_chosen_), num_chosen_,
                  logits.rows());
    scheduler_.complete();
    if (draft_rounds_) draft();
    last_step_.chosen = num_generated_tokens_ - num_before;
    trace_marks().sample(num_running(), num_generated_tokens_);
    return alone ? num_unfinished() > 0 || more_coming : (agreed.any & kBusy) != 0;
}

void Engine::step_idly() {
    FERRY_CHECK(active_.empty());
    settle();
    if (fabric_.layout().num_ranks() == 1) return;
    worker_.step({});
    if (draft_rounds_)
        for (int64_t round = 0; round < options_.scheduler.max_drafts; ++round)
            worker_.draft({}, {}, round == 0);
}

void Engine::settle() {
    while (worker_.next_form().num_rows > 0) worker_.step({});
}

// What this rank says to the others, and how the step may look ahead.
AttentionWorker::StepOptions Engine::step_options(bool busy) {
    AttentionWorker::StepOptions options;
    options.say.any = (busy ? kBusy : 0u) | (stopping_ ? kStopping : 0u);
    options.num_begun = plan_->num_begun;
    if (worker_.repeats_with_others()) {
        const bool generates = scheduler_.only_generates_next(next_keys_);
        const Agreement next = worker_.say_next(generates, next_keys_);
        options.say.any |= next.any;
        options.say.max = next.max;
    }
    if (!worker_.looks_ahead()) return options;
    options.say.max = static_cast<uint32_t>(
        std::min(scheduler_.num_prompt_rows_left(), options_.scheduler.max_batch_tokens));
    options.next_rows = [this] { return scheduler_.plan_ahead().batch(); };
    if (draft_rounds_) return options;  // generated rows wait for their drafts
    options.logits_ready = [this](const Tensor& logits, int64_t begin, int64_t end) {
        choose_tokens(logits, begin, end);
        return scheduler_.plan_more_ahead().batch();
    };
    return options;
}

// Tokens of logit rows [begin, end) of the step. A sequence is through with it at its last row:
// those before are of drafts, each chosen as if all before it were right.
void Engine::choose_tokens(const Tensor& logits, int64_t begin, int64_t end) {
    ScopedZone zone(Zone::sample);
    const std::vector<Sequence*>& sequences = plan_->logit_sequences;
    const auto first = static_cast<size_t>(begin), last = static_cast<size_t>(end);
    for (size_t i = first; i < last; ++i)
        if (sequences[i] != nullptr &&
            (i + 1 == sequences.size() || sequences[i + 1] != sequences[i]))
            scheduler_.complete(*sequences[i]);
    chooser_.choose(
        logits,
        [this, first](size_t i) -> std::optional<SampleInput> {
            const Sequence* sequence = plan_->logit_sequences[first + i];
            if (sequence == nullptr) return {};
            const auto row = static_cast<size_t>(plan_->logit_rows[first + i]);
            return sample_input(static_cast<const Active&>(*sequence), plan_->positions[row] + 1);
        },
        [this, first](size_t i, const SampledToken& sampled) {
            if (Sequence* sequence = plan_->logit_sequences[first + i]; sequence != nullptr)
                take_token(static_cast<Active&>(*sequence), sampled);
        });
    num_chosen_ = end;
}

// How many drafts the planned step computes.
void Engine::note_drafts() {
    const Sequence* last = nullptr;
    for (Sequence* sequence : plan_->logit_sequences) {
        if (sequence == last) continue;
        last = sequence;
        Active& active = static_cast<Active&>(*sequence);
        active.num_planned_drafts = active.num_drafts;
        num_drafts_ += active.num_drafts;
        if (!on_drafts_ || active.num_drafts == 0) continue;
        const std::span<const int32_t> tokens = active.tokens;
        const auto length = static_cast<size_t>(active.length());
        on_drafts_(active.request, tokens.first(length), tokens.subspan(length));
    }
}

// For the token after so many.
SampleInput Engine::sample_input(const Active& active, int64_t length) const {
    const SamplingParams& sampling = active.request.sampling;
    const bool may_stop = length - active.prompt_length >= sampling.min_tokens;
    return {.logits = {},
            .params = sampling,
            .id_hash = active.id_hash,
            .sample = active.request.sample,
            .tokens = std::span(active.tokens).first(static_cast<size_t>(length)),
            .num_prompt_tokens = active.prompt_length,
            .banned = may_stop ? std::span<const int32_t>() : active.stop_tokens};
}

void Engine::take_token(Active& active, const SampledToken& sampled) {
    const SamplingParams& sampling = active.request.sampling;
    if (sampled.token < 0) {
        finish(active, FinishReason::error,
               fmt::format("the model's logits are not finite after {} tokens", active.length()));
        return;
    }
    if (active.num_generated() == 0) active.timings.first_token_s = seconds_since(active.submitted);
    if (sampling.logprobs) {
        active.logprobs.push_back(sampled.logprob);
        active.top_logprobs.insert(active.top_logprobs.end(), sampled.top.begin(),
                                   sampled.top.end());
    }
    const bool was_drafted = active.num_drafts > 0 &&
                             active.tokens[static_cast<size_t>(active.length())] == sampled.token;
    if (was_drafted) {
        --active.num_drafts;
        ++num_accepted_drafts_;
    } else {
        const int64_t num_right = active.num_planned_drafts - active.num_drafts;
        if (draft_rounds_)
            draft_rounds_->learn(active, active.num_planned_drafts, num_right);
        else
            active.lookup.learn(active.num_planned_drafts, num_right);
        scheduler_.reject_drafts(active);
        active.tokens.push_back(sampled.token);
    }
    ++num_generated_tokens_;
    if (on_choice_) on_choice_(active.request, sampled.token);
    if (append_token(active, sampled.token))
        finish(active, FinishReason::stop);
    else if (active.num_generated() >= sampling.max_tokens)
        finish(active, FinishReason::length);
    else if (!was_drafted)
        propose(active);
}

// By the model's own module, for the next step. All attention ranks take as many rounds.
void Engine::draft() {
    const bool alone = fabric_.layout().num_ranks() == 1;
    draft_rounds_->begin(*plan_, scheduler_);
    for (int64_t round = 0; round < options_.scheduler.max_drafts; ++round) {
        if (round > 0) draft_rounds_->next(scheduler_);
        if (round > 0 && alone && draft_rounds_->rows().empty()) break;
        const Tensor logits =
            worker_.draft(draft_rounds_->batch(), draft_rounds_->rows(), round == 0);
        ScopedZone zone(Zone::sample);
        chooser_.choose(
            logits, [this](size_t) { return SampleInput{.logits = {}, .params = greedy_}; },
            [this](size_t i, const SampledToken& sampled) {
                draft_rounds_->take(i, std::max(sampled.token, 0), sampled.logprob);
            });
    }
}

// Drafts to be computed with the token that was just chosen.
void Engine::propose(Active& active) {
    const int64_t most = scheduler_.max_drafts(active);
    if (most == 0 || draft_rounds_) return;
    active.num_drafts = drafter_ ? drafter_(active.request, active.tokens, most)
                                 : active.lookup.extend(active.tokens, most);
}

// Shows the token's text; true when the token, or a stop string that it completes, ends the
// request.
bool Engine::append_token(Active& active, int32_t token) {
    const bool stops = std::ranges::find(active.stop_tokens, token) != active.stop_tokens.end();
    if (!active.decoder) return stops;
    const bool last = stops || active.num_generated() >= active.request.sampling.max_tokens;
    std::string piece = stops ? std::string() : active.decoder->push(token);
    if (last) piece += active.decoder->flush();
    if (!active.stop_strings) {
        if (on_token_) on_token_(active.request, token, piece);
        return stops;
    }
    const bool may_stop = active.num_generated() >= active.request.sampling.min_tokens;
    if (!may_stop) active.stop_strings->pass(piece);
    const bool found = may_stop && active.stop_strings->push(piece);
    const std::string_view text = active.stop_strings->text();
    const size_t safe = last || found ? text.size() : active.stop_strings->num_safe_bytes();
    if (on_token_)
        on_token_(active.request, token,
                  text.substr(active.num_shown_bytes, safe - active.num_shown_bytes));
    active.num_shown_bytes = safe;
    return stops || found;
}

void Engine::finish(Active& active, FinishReason reason, const std::string& error) {
    scheduler_.finish(active);
    Completion completion;
    completion.index = active.request.index;
    completion.sample = active.request.sample;
    completion.num_samples = active.request.sampling.n;
    completion.id = active.request.id;
    completion.num_prompt_tokens = active.prompt_length;
    completion.tokens.assign(active.tokens.begin() + active.prompt_length,
                             active.tokens.begin() + active.length());
    if (active.stop_strings) {
        completion.text = active.stop_strings->text();
    } else if (tokenizer_) {
        // A stop token that is no special token has text, which is not the user's.
        const bool stopped = reason == FinishReason::stop && !completion.tokens.empty();
        completion.text = tokenizer_->decode(
            std::span(completion.tokens).first(completion.tokens.size() - (stopped ? 1 : 0)));
    }
    completion.finish_reason = reason;
    if (reason == FinishReason::error) completion.error = located(active.request, error);
    completion.logprobs = std::move(active.logprobs);
    completion.num_top_logprobs =
        std::min(active.request.sampling.logprobs.value_or(0), model_.config().vocab_size);
    completion.top_logprobs = std::move(active.top_logprobs);
    completion.timings = active.timings;
    completion.timings.total_s = seconds_since(active.submitted);
    finished_.push_back(std::move(completion));
    num_started_ -= active.started ? 1 : 0;
    std::erase_if(active_, [&](const auto& owned) { return owned.get() == &active; });
}

std::vector<Completion> Engine::take_finished() {
    return std::exchange(finished_, {});
}

void Engine::forget_prefixes() {
    FERRY_CHECK(active_.empty(), "{} requests are unfinished", active_.size());
    pages_ = PageAllocator(options_.num_pages, options_.share_prefixes);
    scheduler_.forget_prefixes();
}

void Engine::cancel_all() {
    for (const auto& active : active_) scheduler_.finish(*active);
    active_.clear();
    num_started_ = 0;
}

}  // namespace ferry
