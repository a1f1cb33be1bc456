// A decode step filled up with rows that belong to no sequence, so that steps of nearly as many
// sequences launch alike and a GPU can repeat one recording (StepGraphs of layers/kernels.h).
#pragma once
#include <vector>

#include "comm/exchange.h"
#include "layers/batch.h"

namespace ferry {

// The next token of each of its sequences, and drafts behind it, whose logits are wanted: what can
// be filled up.
bool is_decode_step(const StepBatch& batch);

// Rows that a step of `num_rows` is filled up to: 1, 2, 4, 8, then multiples of 8 up to 128, of 16
// up to 256, and so on: at most an eighth of them is nobody's from 64 on.
int64_t filled_rows(int64_t num_rows);

// The form of a step that is to hold so many rows, filled up to at most `max_rows`, with so many
// keys at most: these go by powers of two from 1024 on.
StepForm form_of(int64_t num_rows, int64_t max_rows, int64_t num_keys);

// How many forms there can be of steps of up to so many rows and keys.
int64_t num_forms(int64_t max_rows, int64_t max_keys);

// Ranks that exchange rows from GPU to GPU repeat a step together, all in one form, or launch it
// kernel by kernel, as NCCL wants what is recorded to be recorded and launched by all. So the form
// is agreed on in the step before: each attention rank says with it what the next step must have
// room for, in Agreement::max (rows) and in bits of Agreement::any from kFirstFormBit on (keys).
constexpr uint32_t kAnyForm = UINT32_MAX;  // max: the next step may have any rows
constexpr int kFirstFormBit = 8;
Agreement say_form(const StepForm& form);
// What came of it; {}: kernel by kernel, as nobody has rows, or somebody said kAnyForm.
StepForm agreed_form(Agreement agreed);

class FilledStep {
  public:
    explicit FilledStep(int64_t max_rows);

    int64_t max_rows() const { return static_cast<int64_t>(tokens_.size()); }
    // The batch, a decode step or empty, with form.num_rows rows, at most max_rows. Those behind
    // the batch's attend to nothing (position -1), are written nowhere (kNoSlot), and have logits
    // too. Each row is a sequence of its own, as if it had no drafts. Arrays stay where they are
    // from step to step; pages are the batch's.
    const StepBatch& fill(const StepBatch& batch, const StepForm& form);

  private:
    std::vector<int32_t> tokens_, positions_, logit_rows_;
    std::vector<int64_t> slots_;
    std::vector<SequenceRows> generated_;
    StepBatch batch_;
};

}  // namespace ferry
