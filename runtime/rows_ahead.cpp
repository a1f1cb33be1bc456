#include "runtime/rows_ahead.h"

#include <algorithm>

#include "base/check.h"

namespace ferry {

constexpr int64_t kMinSliceRows = 32;  // fewer read the weights of dense layers too often

AheadPieces AheadPieces::plan(int64_t num_rows, int64_t num_dense_layers, int64_t max_blocks,
                              int64_t num_points) {
    AheadPieces pieces{.num_dense_layers = num_dense_layers};
    if (num_rows == 0) return pieces;
    pieces.num_blocks = std::clamp<int64_t>(num_rows / kMinSliceRows, 1, max_blocks);
    pieces.rows_per_block = ceil_div(num_rows, pieces.num_blocks);
    if (num_dense_layers == 0) return pieces;
    const int64_t num_slices =
        (num_points / pieces.num_blocks - (num_dense_layers + 1)) / num_dense_layers;
    pieces.rows_per_slice =
        std::max(kMinSliceRows, ceil_div(pieces.rows_per_block, std::max<int64_t>(1, num_slices)));
    pieces.num_slices = ceil_div(pieces.rows_per_block, pieces.rows_per_slice);
    return pieces;
}

AheadPieces::Piece AheadPieces::piece(int64_t index) const {
    FERRY_CHECK(index >= 0 && index < num(), "piece {} of {}", index, num());
    const int64_t block = index / num_per_block(), in_block = index % num_per_block();
    const int64_t slice = in_block % (1 + num_slices) - 1;
    Piece piece{.dense = slice >= 0,
                .layer = in_block / (1 + num_slices),
                .begin = block * rows_per_block,
                .end = (block + 1) * rows_per_block};
    if (piece.dense) {
        piece.begin += slice * rows_per_slice;
        piece.end = std::min(piece.end, piece.begin + rows_per_slice);
    }
    return piece;
}

RowsAhead::RowsAhead(HiddenRows rows, int64_t max_sequences)
    : hidden_(std::move(rows)), slice_(std::min(hidden_.h().rows(), max_sequences)) {}

void RowsAhead::clear() {
    batch_ = {};
    pieces_ = {};
    num_rows_ = num_points_ = num_passed_ = num_taken_ = 0;
}

void RowsAhead::start(const StepBatch& batch, const AheadPieces& pieces, int64_t num_points) {
    FERRY_CHECK(batch.num_tokens() <= pieces.num_blocks * pieces.rows_per_block,
                "{} rows ahead of {}", batch.num_tokens(),
                pieces.num_blocks * pieces.rows_per_block);
    batch_ = batch;
    num_rows_ = batch.num_tokens();
    pieces_ = pieces;
    num_points_ = num_points;
}

AheadPieces::Piece RowsAhead::take_piece() {
    const AheadPieces::Piece piece = pieces_.piece(num_taken_++);
    slice_.take(batch_, std::min(piece.begin, num_rows_), std::min(piece.end, num_rows_));
    return piece;
}

void RowsAhead::grow(const StepBatch& batch) {
    const int64_t before = batch_.num_tokens();
    batch_ = batch;
    slice_.take(batch_, before, batch_.num_tokens());
}

void RowsAhead::swap(HiddenRows& hidden, int64_t num_begun) {
    FERRY_CHECK(!has_piece() && num_begun == batch_.num_tokens(),
                "{} rows begun of {}, in {} pieces", batch_.num_tokens(), num_begun, num_taken_);
    std::swap(hidden, hidden_);
}

}  // namespace ferry
