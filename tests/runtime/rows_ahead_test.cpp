#include "runtime/rows_ahead.h"

#include <gmock/gmock.h>

namespace ferry {
namespace {

using Piece = AheadPieces::Piece;

// Every row goes through every stage once, in order: attention of layer l before its dense layer,
// that before attention of layer l + 1; attention of earlier rows before that of later ones.
void expect_whole(const AheadPieces& pieces, int64_t num_rows, int64_t num_dense) {
    std::vector<int64_t> stage(static_cast<size_t>(num_rows), 0);
    std::vector<int64_t> attended(static_cast<size_t>(num_dense + 1), 0);
    for (int64_t i = 0; i < pieces.num(); ++i) {
        const Piece piece = pieces.piece(i);
        ASSERT_LE(piece.begin, piece.end);
        for (int64_t row = piece.begin; row < std::min(piece.end, num_rows); ++row)
            ASSERT_EQ(stage[static_cast<size_t>(row)]++, 2 * piece.layer + piece.dense) << row;
        if (piece.dense) continue;
        ASSERT_EQ(piece.begin, attended[static_cast<size_t>(piece.layer)]);
        attended[static_cast<size_t>(piece.layer)] = piece.end;
    }
    EXPECT_THAT(stage, testing::Each(2 * num_dense + 1));
}

TEST(AheadPieces, TakeEveryRowThroughEveryStageOnce) {
    for (const int64_t num_rows : {1, 31, 64, 65, 500, 512})
        for (const int64_t num_dense : {0, 1, 3})
            for (const int64_t max_blocks : {2, 3, 4})
                for (const int64_t num_points : {1, 5, 13, 115})
                    expect_whole(AheadPieces::plan(num_rows, num_dense, max_blocks, num_points),
                                 num_rows, num_dense);
}

TEST(AheadPieces, AreAboutAsManyAsThePoints) {
    // 2 blocks of 256 rows: attention, 4 slices of the dense layer, attention.
    const AheadPieces pieces = AheadPieces::plan(512, 1, 2, 13);
    EXPECT_EQ(pieces.num(), 12);
    EXPECT_EQ(pieces.rows_per_slice, 64);
    // Slices of a dense layer are not smaller than it is worth.
    EXPECT_EQ(AheadPieces::plan(512, 3, 2, 1000).rows_per_slice, 32);
    EXPECT_EQ(AheadPieces::plan(0, 3, 2, 13).num(), 0);
    EXPECT_EQ(AheadPieces::plan(16, 1, 2, 13).num_blocks, 1);
}

// Ranks of a tensor-parallel group take the same pieces, those with fewer rows with none in some.
TEST(RowsAhead, PiecesComeDueEvenlyAndAllByTheLastPoint) {
    RowsAhead ahead({cpu_device(), {.dim = 4}, 64, 0}, 8);
    EXPECT_FALSE(ahead.has_piece());
    const std::vector<int32_t> tokens(40), positions(40);
    const std::vector<int64_t> slots(40);
    const std::vector<SequenceRows> prompt{{.first_row = 0, .num_rows = 40, .first_position = 0}};
    const StepBatch batch{.tokens = tokens,
                          .positions = positions,
                          .slots = slots,
                          .prompt = prompt,
                          .generated = {},
                          .logit_rows = {}};
    const AheadPieces pieces = AheadPieces::plan(64, 1, 2, 5);
    ahead.start(batch, pieces, 5);
    int64_t num_taken = 0, num_attended = 0;
    for (int64_t point = 1; point <= 5; ++point) {
        ahead.pass_point();
        for (; ahead.is_due(); ++num_taken)
            if (const Piece piece = ahead.take_piece(); !piece.dense && piece.layer == 0)
                num_attended += ahead.slice().num_tokens();
        EXPECT_EQ(num_taken, ceil_div(point * pieces.num(), 5));
    }
    EXPECT_FALSE(ahead.has_piece());
    EXPECT_EQ(num_attended, 40);
    HiddenRows hidden(cpu_device(), {.dim = 4}, 64, 0);
    ahead.swap(hidden, 40);
}

}  // namespace
}  // namespace ferry
