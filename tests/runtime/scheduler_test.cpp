#include "runtime/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <set>

#include "base/random.h"
#include "runtime/micro_batches.h"

namespace ferry {
namespace {

Sequence make_sequence(int64_t arrival, int64_t prompt, int64_t generate, int32_t first_token = 0) {
    Sequence sequence;
    sequence.arrival = arrival;
    sequence.tokens.resize(static_cast<size_t>(prompt));
    std::iota(sequence.tokens.begin(), sequence.tokens.end(), first_token);
    sequence.prompt_length = prompt;
    sequence.max_length = prompt + generate;
    return sequence;
}

// A token for each of the logit rows [begin, end) of a step that counts, of a draft three times in
// four. Some sequences end; returns how many.
size_t generate(Scheduler& scheduler, const StepPlan& plan, Random& random, size_t begin = 0,
                size_t end = SIZE_MAX) {
    size_t num_ended = 0;
    for (size_t i = begin; i < std::min(end, plan.logit_sequences.size()); ++i) {
        if (plan.logit_sequences[i] == nullptr) continue;
        Sequence& sequence = *plan.logit_sequences[i];
        const bool right = sequence.num_drafts > 0 && random.next_u32() % 4 != 0;
        if (right) {
            --sequence.num_drafts;
        } else {
            scheduler.reject_drafts(sequence);
            sequence.tokens.push_back(static_cast<int32_t>(random.next_u32() % 100));
        }
        if (random.next_u32() % 50 == 0 || sequence.length() >= sequence.max_length) {
            scheduler.finish(sequence);
            ++num_ended;
        } else if (!right) {
            const auto most = static_cast<uint32_t>(scheduler.max_drafts(sequence));
            sequence.num_drafts = random.next_u32() % (most + 1);
            sequence.tokens.resize(sequence.tokens.size() +
                                   static_cast<size_t>(sequence.num_drafts));
        }
    }
    return num_ended;
}

// Rows of a prompt from expanded_positions on are SequenceRows of their own, without a place that
// is expanded.
TEST(Scheduler, PromptRowsThatChooseTheirKeysAreApart) {
    PageAllocator pages(100, false);
    Scheduler scheduler({.max_batch = 2,
                         .max_batch_tokens = 60,
                         .max_prefill_chunk = 60,
                         .expanded_positions = 100,
                         .num_expanded_units = 1000,
                         .num_layers = 1},
                        pages);
    Sequence sequence;
    sequence.tokens.assign(200, 7);
    sequence.prompt_length = 190;
    sequence.max_length = 210;
    scheduler.add(sequence);
    struct Part {
        int64_t first_row, num_rows, first_position;
        bool operator==(const Part&) const = default;
    };
    std::vector<std::vector<Part>> steps;
    while (sequence.num_computed < 200) {
        const StepPlan& plan = scheduler.plan();
        std::vector<Part>& step = steps.emplace_back();
        EXPECT_EQ(plan.prompt_sequences.size(), plan.prompt.size());
        for (const SequenceRows& rows : plan.prompt) {
            step.push_back({rows.first_row, rows.num_rows, rows.first_position});
            EXPECT_EQ(rows.expanded.holds(0), rows.first_position < 100);
            if (rows.expanded.holds(0)) {
                EXPECT_EQ(rows.expanded.num_expanded, rows.first_position);
                EXPECT_LE(rows.end_position(), rows.expanded.num_positions);
            }
        }
        for (const SequenceRows& rows : plan.generated)
            step.push_back({rows.first_row, rows.num_rows, rows.first_position});
        scheduler.complete();
        EXPECT_EQ(scheduler.room().num_held(), sequence.num_computed < 100 ? 100 : 0);
    }
    const std::vector<std::vector<Part>> expected{
        {{0, 60, 0}}, {{0, 40, 60}, {40, 20, 100}}, {{0, 60, 120}}, {{0, 10, 180}, {10, 10, 190}}};
    EXPECT_EQ(steps, expected);
    scheduler.finish(sequence);
}

TEST(Scheduler, ChunksAPromptUnderTheBudget) {
    PageAllocator pages(8, false);
    Scheduler scheduler({.max_batch = 4, .max_batch_tokens = 100, .max_prefill_chunk = 80}, pages);
    Sequence a = make_sequence(0, 150, 10), b = make_sequence(1, 30, 10);
    scheduler.add(a);
    scheduler.add(b);

    const StepPlan* plan = &scheduler.plan();
    ASSERT_EQ(plan->prompt.size(), 2u);  // 80 of a, then 20 of b
    EXPECT_EQ(plan->prompt[0].num_rows, 80);
    EXPECT_EQ(plan->prompt[1].num_rows, 20);
    EXPECT_TRUE(plan->logit_rows.empty());
    scheduler.complete();

    plan = &scheduler.plan();
    EXPECT_EQ(plan->prompt[0].first_position, 80);
    EXPECT_EQ(plan->prompt[0].num_rows, 70);
    EXPECT_EQ(plan->prompt[1].num_rows, 10);
    EXPECT_EQ(plan->logit_rows, (std::vector<int32_t>{69, 79}));
    EXPECT_EQ(plan->positions[0], 80);
    EXPECT_EQ(plan->tokens[70], 20);
    scheduler.complete();

    a.tokens.push_back(1000);
    b.tokens.push_back(2000);
    plan = &scheduler.plan();
    EXPECT_TRUE(plan->prompt.empty());
    ASSERT_EQ(plan->generated.size(), 2u);
    EXPECT_EQ(plan->tokens, (std::vector<int32_t>{1000, 2000}));
    EXPECT_EQ(plan->positions, (std::vector<int32_t>{150, 30}));
    EXPECT_EQ(plan->slots[0], a.pages[2] * kPageTokens + 150 - 128);
}

TEST(Scheduler, GeneratedTokensAreNeverLaidOutAsPrompt) {
    PageAllocator pages(4, false);
    Scheduler scheduler({.max_batch = 2, .max_batch_tokens = 64, .max_prefill_chunk = 64}, pages);
    Sequence a = make_sequence(0, 5, 10);
    a.tokens.insert(a.tokens.end(), {90, 91, 92});  // as after a preemption
    scheduler.add(a);
    const StepPlan& plan = scheduler.plan();
    ASSERT_EQ(plan.prompt.size(), 1u);
    ASSERT_EQ(plan.generated.size(), 1u);
    EXPECT_EQ(plan.prompt[0].num_rows, 5);
    EXPECT_EQ(plan.generated[0].first_row, 5);
    EXPECT_EQ(plan.generated[0].first_position, 5);
    EXPECT_EQ(plan.generated[0].num_rows, 3);
    EXPECT_EQ(plan.logit_rows, (std::vector<int32_t>{7}));
}

TEST(Scheduler, PreemptsTheLastArrivalAndFinishesEverything) {
    PageAllocator pages(4, false);
    Scheduler scheduler({.max_batch = 4, .max_batch_tokens = 512, .max_prefill_chunk = 512}, pages);
    Sequence a = make_sequence(0, 100, 100), b = make_sequence(1, 100, 100);
    scheduler.add(a);
    scheduler.add(b);
    int64_t done = 0;
    for (int step = 0; step < 1000 && done < 2; ++step) {
        const StepPlan& plan = scheduler.plan();
        ASSERT_FALSE(plan.empty());
        const std::vector<Sequence*> next = plan.logit_sequences;
        scheduler.complete();
        for (Sequence* sequence : next) {
            sequence->tokens.push_back(7);
            if (static_cast<int64_t>(sequence->tokens.size()) < sequence->max_length) continue;
            scheduler.finish(*sequence);
            ++done;
        }
    }
    EXPECT_EQ(done, 2);
    EXPECT_EQ(a.num_preemptions, 0);
    EXPECT_GE(b.num_preemptions, 1);
    EXPECT_EQ(pages.num_available(), 4);
}

TEST(Scheduler, SharesFullPromptPagesButComputesTheLastToken) {
    PageAllocator pages(16, true);
    Scheduler scheduler({.max_batch = 4, .max_batch_tokens = 512, .max_prefill_chunk = 512}, pages);
    Sequence a = make_sequence(0, 128, 4), b = make_sequence(1, 128, 4),
             c = make_sequence(2, 200, 4);
    scheduler.add(a);
    scheduler.plan();
    scheduler.complete();
    scheduler.add(b);
    scheduler.add(c);
    const StepPlan& plan = scheduler.plan();
    ASSERT_EQ(plan.prompt.size(), 2u);
    EXPECT_EQ(plan.prompt[0].first_position, 64);  // one page shared, the last token's page is not
    EXPECT_EQ(plan.prompt[1].first_position, 128);
    EXPECT_EQ(b.pages[0], a.pages[0]);
    EXPECT_NE(b.pages[1], a.pages[1]);
    EXPECT_EQ(c.num_prefix_tokens, 128);
}

TEST(Scheduler, PlansPromptsAhead) {
    PageAllocator pages(16, false);
    Scheduler scheduler({.max_batch = 4, .max_batch_tokens = 100, .max_prefill_chunk = 80}, pages);
    Sequence a = make_sequence(0, 50, 1), b = make_sequence(1, 60, 10),
             c = make_sequence(2, 90, 10), d = make_sequence(3, 60, 10);
    for (Sequence* sequence : {&a, &b, &c, &d}) scheduler.add(*sequence);
    const StepPlan& plan = scheduler.plan();  // a's 50, 50 of b
    EXPECT_EQ(plan.num_begun, 0);
    EXPECT_EQ(scheduler.num_prompt_rows_left(), 10 + 90 + 60);
    const StepPlan ahead = scheduler.plan_ahead();  // a ends with this step, so no row is for it
    ASSERT_EQ(ahead.prompt.size(), 3u);
    EXPECT_EQ(ahead.prompt[0].first_position, 50);
    EXPECT_EQ(ahead.prompt[0].num_rows, 10);
    EXPECT_EQ(ahead.prompt[1].num_rows, 80);
    EXPECT_EQ(ahead.prompt[2].num_rows, 10);
    scheduler.complete();
    scheduler.finish(a);

    scheduler.plan();
    EXPECT_EQ(plan.num_begun, 100);
    EXPECT_EQ(plan.tokens, ahead.tokens);
    EXPECT_EQ(plan.slots, ahead.slots);
    EXPECT_EQ(plan.logit_rows, std::vector<int32_t>{9});  // of b
    scheduler.plan_ahead();                               // 10 of c, 50 of d; b's next token
    scheduler.complete();
    b.tokens.push_back(7);
    scheduler.plan();
    EXPECT_EQ(plan.num_begun, 60);
    ASSERT_EQ(plan.generated.size(), 1u);
    EXPECT_EQ(plan.generated[0].first_row, 60);

    scheduler.plan_ahead();  // nothing is left; and once nothing is ahead, nothing is begun
    scheduler.complete();
    for (Sequence* sequence : {&b, &c, &d}) sequence->tokens.push_back(7);
    EXPECT_EQ(scheduler.plan().num_begun, 0);
    EXPECT_EQ(plan.generated.size(), 3u);
}

TEST(Scheduler, ForgetsWhatWasAheadWhenASequenceOfItEnds) {
    PageAllocator pages(16, false);
    Scheduler scheduler({.max_batch = 4, .max_batch_tokens = 50, .max_prefill_chunk = 50}, pages);
    Sequence a = make_sequence(0, 50, 5), b = make_sequence(1, 60, 5), c = make_sequence(2, 60, 5);
    for (Sequence* sequence : {&a, &b, &c}) scheduler.add(*sequence);
    scheduler.plan();
    EXPECT_EQ(scheduler.plan_ahead().prompt.size(), 1u);
    scheduler.complete();
    scheduler.finish(b);
    a.tokens.push_back(7);
    const StepPlan& plan = scheduler.plan();
    EXPECT_EQ(plan.num_begun, 0);
    EXPECT_EQ(plan.generated.size(), 1u);
    EXPECT_EQ(plan.prompt[0].num_rows, 49);  // of c
}

TEST(Scheduler, DraftsAreComputedWithTheTokenBeforeThem) {
    PageAllocator pages(3, false);
    Scheduler scheduler({.max_batch = 2, .max_batch_tokens = 8, .max_drafts = 4}, pages);
    Sequence a = make_sequence(0, 5, 100), b = make_sequence(1, 1, 4);
    scheduler.add(a);
    scheduler.add(b);
    const StepPlan& plan = scheduler.plan();
    ASSERT_EQ(plan.logit_sequences, (std::vector<Sequence*>{&a, &b}));
    scheduler.complete();
    EXPECT_EQ(scheduler.max_drafts(a), 4);
    EXPECT_EQ(scheduler.max_drafts(b), 3);  // one token comes of its last row anyway
    a.tokens.insert(a.tokens.end(), {50, 51, 52, 53, 54});
    a.num_drafts = 4;
    b.tokens.insert(b.tokens.end(), {60, 61, 62});
    b.num_drafts = 2;

    scheduler.plan();
    EXPECT_EQ(plan.tokens, (std::vector<int32_t>{50, 51, 52, 53, 54, 60, 61, 62}));
    EXPECT_EQ(plan.logit_rows, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
    ASSERT_EQ(plan.generated.size(), 2u);
    EXPECT_EQ(plan.generated[0].num_rows, 5);
    scheduler.complete();
    --a.num_drafts;  // 51 is right, 52 is not
    scheduler.reject_drafts(a);
    EXPECT_EQ(a.tokens.back(), 51);
    EXPECT_EQ(a.num_computed, 7);
    const std::vector<Sequence*> left{nullptr, nullptr, nullptr, nullptr, nullptr, &b, &b, &b};
    EXPECT_EQ(plan.logit_sequences, left);
    a.tokens.insert(a.tokens.end(), {70, 71, 72, 73, 74});
    a.num_drafts = 4;
    b.num_drafts = 0;
    b.tokens.push_back(63);

    // Of drafts as many as the budget leaves, first come first served.
    Sequence c = make_sequence(2, 40, 4);
    scheduler.add(c);
    scheduler.plan();
    EXPECT_EQ(plan.tokens, (std::vector<int32_t>{70, 71, 72, 73, 74, 63}));
    scheduler.complete();
    scheduler.finish(b);
    scheduler.reject_drafts(a);
    // A page for the drafts would be the last one, which a running sequence may need.
    a.tokens.resize(63, 7);
    a.num_computed = 63;
    a.num_drafts = 0;
    scheduler.plan();  // 7 of c
    EXPECT_EQ(plan.prompt.size(), 1u);
    scheduler.complete();
    a.tokens.insert(a.tokens.end(), {80, 81, 82});
    a.num_drafts = 2;
    scheduler.plan();
    EXPECT_EQ(plan.tokens.back(), 80);
    EXPECT_EQ(a.num_drafts, 0);
    EXPECT_EQ(a.tokens.back(), 80);
}

// What was said of the next step holds, whatever tokens came of this one, and though others begin
// to wait meanwhile; everything finishes all the same.
TEST(Scheduler, StepsThatOnlyGenerateAreAsWasSaid) {
    int64_t num_generating = 0, num_others = 0;
    for (uint64_t seed = 0; seed < 12; ++seed) {
        Random random(seed);
        PageAllocator pages(12, seed % 2 == 0);
        const int64_t max_drafts = seed / 2 % 3 * 3;
        Scheduler scheduler({.max_batch = 4,
                             .max_batch_tokens = seed < 6 ? 40 : 12,
                             .max_prefill_chunk = 33,
                             .max_drafts = max_drafts},
                            pages);
        std::vector<std::unique_ptr<Sequence>> all;
        size_t done = 0;
        std::vector<int64_t> num_keys;
        bool generates = false;
        constexpr size_t kSequences = 20;
        for (int step = 0; step < 60000 && done < kSequences; ++step) {
            if (all.size() < kSequences && scheduler.room_left() > 0 &&
                random.next_u32() % 8 == 0) {
                all.push_back(std::make_unique<Sequence>(
                    make_sequence(static_cast<int64_t>(all.size()), 1 + random.next_u32() % 200,
                                  1 + random.next_u32() % 100)));
                scheduler.add(*all.back());
            }
            const StepPlan& plan = generates ? scheduler.plan_generated() : scheduler.plan();
            if (generates) {
                ASSERT_TRUE(plan.prompt.empty());
                ASSERT_EQ(plan.logit_rows.size(), plan.tokens.size());
                ASSERT_LE(plan.tokens.size(), num_keys.size());
                std::multiset<int64_t> left(num_keys.begin(), num_keys.end());
                std::vector<int32_t> positions = plan.positions;
                std::ranges::sort(positions, std::greater<>());
                for (const int32_t position : positions) {  // the longest room for the longest
                    ASSERT_FALSE(left.empty());
                    const auto found =
                        max_drafts == 0 ? left.find(position + 1) : std::prev(left.end());
                    ASSERT_NE(found, left.end());
                    ASSERT_GE(*found, position + 1);
                    left.erase(found);
                }
            }
            (generates ? num_generating : num_others) += plan.empty() ? 0 : 1;
            generates = scheduler.only_generates_next(num_keys) && !num_keys.empty();
            ASSERT_TRUE(!generates || num_keys.size() <= (seed < 6 ? 40 : 12));
            scheduler.complete();
            done += generate(scheduler, plan, random);
        }
        EXPECT_EQ(done, kSequences);
        EXPECT_EQ(pages.num_available(), 12);
    }
    EXPECT_GT(num_generating, num_others);
}

// Random work: rows are laid out once each, slots belong to the sequence, nothing leaks, all
// finishes; what was planned ahead comes first in the next plan.
TEST(Scheduler, RandomLoadsKeepTheInvariants) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
        Random random(seed);
        PageAllocator pages(10, seed % 2 == 0);
        const int64_t max_drafts = seed % 3 * 2;
        Scheduler scheduler({.max_batch = 5,
                             .max_batch_tokens = 40,
                             .max_prefill_chunk = 33,
                             .max_drafts = max_drafts},
                            pages);
        std::vector<std::unique_ptr<Sequence>> all;
        for (int64_t i = 0; i < 30; ++i) {
            const int64_t prompt = 1 + random.next_u32() % 300,
                          generate = 1 + random.next_u32() % 300;
            all.push_back(std::make_unique<Sequence>(
                make_sequence(i, prompt, generate, static_cast<int32_t>(random.next_u32() % 2))));
            scheduler.add(*all.back());
        }
        size_t done = 0, begun = 0;
        const bool looks_ahead = seed % 4 >= 2;
        StepPlan ahead;
        for (int step = 0; step < 60000 && done < all.size(); ++step) {
            const StepPlan& plan = scheduler.plan();
            ASSERT_FALSE(plan.empty()) << "seed " << seed << " step " << step;
            ASSERT_LE(plan.tokens.size(), 40u);
            ASSERT_TRUE(plan.num_begun == 0 ||
                        plan.num_begun == static_cast<int64_t>(ahead.tokens.size()));
            const auto num_begun = static_cast<size_t>(plan.num_begun);
            for (size_t row = 0; row < num_begun; ++row) {
                ASSERT_EQ(plan.tokens[row], ahead.tokens[row]);
                ASSERT_EQ(plan.positions[row], ahead.positions[row]);
                ASSERT_EQ(plan.slots[row], ahead.slots[row]);
            }
            begun += num_begun;
            std::map<int64_t, int64_t> slots;
            for (int64_t slot : plan.slots) ASSERT_EQ(++slots[slot], 1);
            int64_t rows = 0;
            for (const auto* list : {&plan.prompt, &plan.generated})
                for (const SequenceRows& r : *list) rows += r.num_rows;
            ASSERT_EQ(rows, static_cast<int64_t>(plan.tokens.size()));
            if (looks_ahead) {
                const int64_t left = scheduler.num_prompt_rows_left();
                ahead = scheduler.plan_ahead();
                ASSERT_LE(static_cast<int64_t>(ahead.tokens.size()), std::min<int64_t>(left, 40));
                for (int64_t slot : ahead.slots) ASSERT_EQ(++slots[slot], 1);
            }
            // As when one micro-batch is through before the other: its sequences go on ahead.
            const std::vector<Sequence*>& sequences = plan.logit_sequences;
            const size_t half = looks_ahead ? sequences.size() / 2 : 0;
            for (size_t i = 0; i < half; ++i)
                if (sequences[i + 1] != sequences[i]) scheduler.complete(*sequences[i]);
            if (half > 0) {
                done += generate(scheduler, plan, random, 0, half);
                ahead = scheduler.plan_more_ahead();
                ASSERT_LE(ahead.tokens.size(), 40u);
                ASSERT_EQ(std::set<int64_t>(ahead.slots.begin(), ahead.slots.end()).size(),
                          ahead.slots.size());
            }
            scheduler.complete();
            for (size_t i = half; i < sequences.size(); ++i) {
                if (sequences[i] == nullptr) continue;
                ASSERT_EQ(sequences[i]->num_computed, std::ssize(sequences[i]->tokens));
            }
            done += generate(scheduler, plan, random, half);
        }
        EXPECT_EQ(begun > 0, looks_ahead);
        EXPECT_EQ(done, all.size());
        EXPECT_EQ(pages.num_available(), 10);
    }
}

// What would be in the memory of prompts that stay expanded: of which prompt each unit is (its
// first token tells; several sequences may have it), and which position. Two layers: the first is
// computed ahead of a step, the second is not.
class ExpandedMemory {
  public:
    explicit ExpandedMemory(int64_t num_units) : units_(static_cast<size_t>(num_units), {-1, -1}) {}

    // Rows [begin, end) of a plan in one layer.
    void expand(const StepPlan& plan, int64_t begin, int64_t end, int64_t layer) {
        StepPart part(64);
        part.take(plan.batch(), begin, end);
        for (const SequenceRows& rows : part.batch().prompt) {
            const ExpandedPrompt& kept = rows.expanded;
            if (!kept.holds(layer)) continue;
            ++num_kept_;
            ASSERT_LE(rows.end_position(), kept.num_positions);
            ASSERT_LE(kept.num_expanded, rows.first_position);
            const int64_t first = kept.first_unit + layer * kept.num_positions;
            const int32_t token = part.batch().tokens[static_cast<size_t>(rows.first_row)];
            const int64_t prompt = token - rows.first_position;
            for (int64_t i = 0; i < rows.end_position(); ++i) {
                auto& unit = units_.at(static_cast<size_t>(first + i));
                const std::pair<int64_t, int64_t> mine{prompt, i};
                if (i < kept.num_expanded)
                    ASSERT_EQ(unit, mine) << "layer " << layer;
                else
                    unit = mine;
            }
        }
    }
    int64_t num_kept() const { return num_kept_; }

  private:
    std::vector<std::pair<int64_t, int64_t>> units_;
    int64_t num_kept_ = 0;
};

// Whatever is preempted, ends early, or was planned ahead and is dropped: a chunk finds in its
// layer what it takes for expanded.
TEST(Scheduler, ChunksFindWhatEarlierOnesHaveExpanded) {
    int64_t num_kept = 0, num_preemptions = 0, num_dropped = 0;
    for (uint64_t seed = 0; seed < 40; ++seed) {
        Random random(seed);
        PageAllocator pages(10, seed % 2 == 0);
        constexpr int64_t kUnits = 700;
        Scheduler scheduler({.max_batch = 5,
                             .max_batch_tokens = 40,
                             .max_prefill_chunk = seed % 3 == 0 ? 33 : 7,
                             .num_expanded_units = kUnits,
                             .num_layers = 2},
                            pages);
        ExpandedMemory memory(kUnits);
        std::vector<std::unique_ptr<Sequence>> all;
        for (int64_t i = 0; i < 30; ++i) {
            all.push_back(std::make_unique<Sequence>(
                make_sequence(i, 1 + random.next_u32() % 300, 1 + random.next_u32() % 100,
                              static_cast<int32_t>(random.next_u32() % 5))));
            scheduler.add(*all.back());
        }
        size_t done = 0;
        const bool looks_ahead = seed % 4 >= 2;
        for (int step = 0; step < 60000 && done < all.size(); ++step) {
            const StepPlan& plan = scheduler.plan();
            const auto rows = static_cast<int64_t>(plan.tokens.size());
            memory.expand(plan, plan.num_begun, rows, 0);
            if (looks_ahead) {
                const StepPlan& ahead = scheduler.plan_ahead();
                memory.expand(ahead, 0, static_cast<int64_t>(ahead.tokens.size()), 0);
            }
            memory.expand(plan, 0, rows / 2, 1);
            memory.expand(plan, rows / 2, rows, 1);
            ASSERT_FALSE(HasFatalFailure()) << "seed " << seed << " step " << step;
            scheduler.complete();
            done += generate(scheduler, plan, random);
            // One that is cancelled takes what the others have ahead with it.
            const auto ahead = std::ranges::find_if(all, [](const auto& s) { return s->is_ahead; });
            if (ahead == all.end() || random.next_u32() % 8 != 0) continue;
            scheduler.finish(**ahead);
            ++done;
            ++num_dropped;
        }
        EXPECT_EQ(done, all.size());
        EXPECT_EQ(scheduler.room().num_held(), 0);
        num_kept += memory.num_kept();
        num_preemptions += scheduler.num_preemptions();
    }
    EXPECT_GT(num_kept, 10000);
    EXPECT_GT(num_preemptions, 100);
    EXPECT_GT(num_dropped, 20);
}

}  // namespace
}  // namespace ferry
