// Rows of the next step, begun while this one's are with their experts.
#pragma once
#include "runtime/hidden_rows.h"
#include "runtime/micro_batches.h"

namespace ferry {

// How the beginning of rows, which is all that comes before the first exchange, is cut into pieces
// of like length. The rows go in blocks, one after the other. A block is attended to as a whole, as
// each call rebuilds keys and values of all that comes before, where a prompt does not stay
// expanded; its dense layers go in slices of rows. The same on all attention ranks, as
// tensor-parallel groups take part in dense layers.
struct AheadPieces {
    struct Piece {
        bool dense = false;  // a slice of a dense layer; else attention, in layer 0 the embedding
        int64_t layer = 0;
        int64_t begin = 0, end = 0;  // rows
    };
    int64_t num_dense_layers = 0;
    int64_t rows_per_block = 0, num_blocks = 0;
    int64_t rows_per_slice = 0, num_slices = 0;  // of a block in a dense layer

    // For `num_rows` rows, of which there may be none: in about `num_points` pieces, in at most
    // `max_blocks` blocks.
    static AheadPieces plan(int64_t num_rows, int64_t num_dense_layers, int64_t max_blocks,
                            int64_t num_points);
    int64_t num() const { return num_blocks * num_per_block(); }
    Piece piece(int64_t index) const;

  private:
    int64_t num_per_block() const { return num_dense_layers * (1 + num_slices) + 1; }
};

class RowsAhead {
  public:
    // Of so many sequences, in `rows`.
    RowsAhead(HiddenRows rows, int64_t max_sequences);

    void clear();
    // Leading rows of the next step, begun in `pieces` for as many rows as any rank has; due at
    // even distances over so many points of this step.
    void start(const StepBatch& batch, const AheadPieces& pieces, int64_t num_points);
    void pass_point() { ++num_passed_; }
    bool has_piece() const { return num_taken_ < pieces_.num(); }
    // By the points passed, and the last point makes all of them due.
    bool is_due() const { return num_taken_ * num_points_ < num_passed_ * pieces_.num(); }
    // What to compute next, on slice() and its hidden rows; those may be none.
    AheadPieces::Piece take_piece();
    // The batch has grown at its end: what is new is the slice, to be begun at once.
    void grow(const StepBatch& batch);
    const StepBatch& slice() const { return slice_.batch(); }
    HiddenRows::Rows slice_rows() const {
        return hidden_.rows(slice_.first_row(), slice().num_tokens());
    }
    // The next step's hidden rows, of which the leading ones have begun, against this step's.
    void swap(HiddenRows& hidden, int64_t num_begun);

  private:
    HiddenRows hidden_;
    StepBatch batch_;
    StepPart slice_;
    AheadPieces pieces_;
    int64_t num_rows_ = 0;  // that go in pieces
    int64_t num_points_ = 0, num_passed_ = 0, num_taken_ = 0;
};

}  // namespace ferry
