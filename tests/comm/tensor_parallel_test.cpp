#include "comm/tensor_parallel.h"

#include <gmock/gmock.h>
#include <limits>
#include <numeric>

#include "base/random.h"
#include "base/trace.h"
#include "comm/shared_counter.h"
#include "comm/world.h"
#include "tests/support/mpi_main.h"

namespace ferry {
namespace {

using testing::ElementsAre;

struct Group {
    explicit Group(int num_slices, int64_t inline_bytes = 4096) : world(test_world()) {
        transport = make_transport("auto", world, nullptr);
        std::vector<int> members;
        for (int r = 0; r < world.size(); ++r) members.push_back(r);
        tp = make_tensor_parallel(
            *transport, members,
            {.num_slices = num_slices, .inline_bytes = inline_bytes, .stall_timeout_s = 20},
            nullptr);
        transport->connect();
    }
    World& world;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<TensorParallel> tp;
};

std::vector<float> random_rows(uint64_t seed, int64_t count) {
    Random random(seed);
    std::vector<float> x(count);
    for (float& value : x) value = random.next_normal();
    return x;
}

// Rows of a rank in a round: also none.
int64_t num_rows(int rank, int round) {
    return (rank * 3 + round * 5) % 7;
}

// sum[0, n) by halves, the plain way.
float tree_sum(const std::vector<float>& values, size_t lo, size_t hi) {
    if (hi - lo == 1) return values[lo];
    const size_t middle = lo + (hi - lo) / 2;
    return tree_sum(values, lo, middle) + tree_sum(values, middle, hi);
}

TEST(SliceNodes, AreTheLargestPartsOfTheTree) {
    EXPECT_THAT(slice_nodes(8, 0, 8), ElementsAre(SliceNode{0, 8}));
    EXPECT_THAT(slice_nodes(8, 4, 8), ElementsAre(SliceNode{4, 8}));
    // [0, 12) = [0, 6) + [6, 12); [0, 6) = [0, 3) + [3, 6); [3, 6) = [3, 4) + [4, 6).
    EXPECT_THAT(slice_nodes(12, 0, 4), ElementsAre(SliceNode{0, 3}, SliceNode{3, 4}));
    EXPECT_THAT(slice_nodes(12, 4, 8),
                ElementsAre(SliceNode{4, 6}, SliceNode{6, 7}, SliceNode{7, 8}));
}

TEST(TensorParallel, GatherPutsRowsInOrderOfMembers) {
    for (int64_t inline_bytes : {0, 64, 4096}) {
        Group group(12, inline_bytes);
        for (int round = 0; round < 20; ++round) {
            const int64_t dim = 5 + round % 3;
            const int64_t own = num_rows(group.tp->rank(), round);
            const std::vector<float> x = random_rows(round * 100 + group.tp->rank(), own * dim);
            const auto all = group.tp->gather_rows(Tensor(x.data(), DType::f32, {own, dim}));
            std::vector<float> expected;
            for (int r = 0; r < group.tp->size(); ++r) {
                ASSERT_EQ(all.offsets[r + 1] - all.offsets[r], num_rows(r, round));
                const std::vector<float> rows =
                    random_rows(round * 100 + r, num_rows(r, round) * dim);
                expected.insert(expected.end(), rows.begin(), rows.end());
            }
            ASSERT_EQ(all.rows.rows() * dim, static_cast<int64_t>(expected.size()));
            for (size_t i = 0; i < expected.size(); ++i)
                ASSERT_EQ(all.rows.as<float>()[i], expected[i]);
        }
    }
}

TEST(TensorParallel, ReduceScatterGivesTheBitsOfOneRank) {
    const int num_slices = 12;
    Group group(num_slices, 64);
    for (int round = 0; round < 10; ++round) {
        const int64_t dim = round % 2 ? 300 : 3;
        const int64_t own = num_rows(group.tp->rank(), round);
        const std::vector<float> x(own * dim);
        const auto all = group.tp->gather_rows(Tensor(x.data(), DType::f32, {own, dim}));
        const int64_t total = all.rows.rows();
        // Slice s of all rows, the same on whichever rank makes it.
        std::vector<std::vector<float>> slices;
        for (int s = 0; s < num_slices; ++s)
            slices.push_back(random_rows(round * 50 + s, total * dim));
        std::vector<float> parts;
        for (int s = 0; s < group.tp->num_local_slices(); ++s) {
            const std::vector<float>& slice = slices[group.tp->first_slice() + s];
            parts.insert(parts.end(), slice.begin(), slice.end());
        }
        std::vector<float> out(own * dim, -1.0f);
        group.tp->reduce_scatter(
            Tensor(parts.data(), DType::f32, {group.tp->num_local_slices(), total, dim}),
            Tensor(out.data(), DType::f32, {own, dim}));
        for (int64_t i = 0; i < own * dim; ++i) {
            std::vector<float> values;
            for (const std::vector<float>& slice : slices)
                values.push_back(slice[all.offsets[group.tp->rank()] * dim + i]);
            ASSERT_EQ(out[i], tree_sum(values, 0, values.size())) << "round " << round;
        }
    }
}

TEST(TensorParallel, ColumnsComeTogetherAtTheOwnerOfTheRow) {
    Group group(12);
    const int size = group.tp->size();
    const int rank = group.tp->rank();
    std::vector<int64_t> column_offsets{0};
    for (int r = 0; r < size; ++r) column_offsets.push_back(column_offsets.back() + 2 + r);
    for (int round = 0; round < 8; ++round) {
        const int64_t own = num_rows(rank, round);
        std::vector<float> x(own);
        for (int64_t i = 0; i < own; ++i) x[i] = static_cast<float>(rank * 100 + i);
        const auto all = group.tp->gather_rows(Tensor(x.data(), DType::f32, {own, 1}));
        const int64_t columns = column_offsets[rank + 1] - column_offsets[rank];
        std::vector<float> local;
        for (int64_t row = 0; row < all.rows.rows(); ++row)
            for (int64_t c = 0; c < columns; ++c)
                local.push_back(all.rows.as<float>()[row] * 1000 +
                                static_cast<float>(column_offsets[rank] + c));
        std::vector<float> out(own * column_offsets.back(), -1.0f);
        group.tp->scatter_columns(Tensor(local.data(), DType::f32, {all.rows.rows(), columns}),
                                  column_offsets,
                                  Tensor(out.data(), DType::f32, {own, column_offsets.back()}));
        for (int64_t row = 0; row < own; ++row)
            for (int64_t c = 0; c < column_offsets.back(); ++c)
                ASSERT_EQ(out[row * column_offsets.back() + c],
                          x[row] * 1000 + static_cast<float>(c));
    }
}

TEST(TensorParallel, LooksUpRowsOfASplitTable) {
    Group group(12);
    const int rank = group.tp->rank();
    std::vector<int64_t> row_offsets{0};
    for (int r = 0; r < group.tp->size(); ++r) row_offsets.push_back(row_offsets.back() + 3 + r);
    const int64_t dim = 4;
    const int64_t local = row_offsets[rank + 1] - row_offsets[rank];
    std::vector<uint16_t> table;  // row i is (i, i, ...)
    for (int64_t i = 0; i < local * dim; ++i)
        table.push_back(f32_to_bf16(static_cast<float>(row_offsets[rank] + i / dim)));
    for (int round = 0; round < 8; ++round) {
        std::vector<int32_t> ids;
        Random random(round * 31 + rank);
        for (int64_t i = 0; i < num_rows(rank, round); ++i)
            ids.push_back(static_cast<int32_t>(random.next_u32() % row_offsets.back()));
        std::vector<float> out(ids.size() * dim, -1.0f);
        group.tp->lookup_rows(
            ids, Tensor(table.data(), DType::bf16, {local, dim}), row_offsets,
            Tensor(out.data(), DType::f32, {static_cast<int64_t>(ids.size()), dim}));
        for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], static_cast<float>(ids[i / dim]));
    }
}

TEST(SharedCounter, EveryItemIsClaimedOnce) {
    World& world = test_world();
    const auto transport = make_transport("auto", world, nullptr);
    std::vector<int> members;
    for (int r = 0; r < world.size(); ++r) members.push_back(r);
    SharedCounter counter(*transport, members, 1000);
    transport->connect();
    int64_t claimed = 0;
    int64_t sum = 0;
    for (bool more = true; more;) {
        counter.request(1 + claimed % 3);
        std::optional<Claim> claim;
        while (!(claim = counter.poll())) {
        }
        more = claim->count > 0;
        claimed += claim->count;
        for (int64_t i = 0; i < claim->count; ++i) sum += claim->begin + i;
    }
    // The owner answers until nobody asks.
    int64_t done = 0;
    std::vector<std::string> all;
    if (world.rank() == 0) {
        const int64_t begin = trace_now_ns();
        while (trace_now_ns() - begin < 300'000'000) transport->progress();
    }
    done = world.all_sum(claimed);
    EXPECT_EQ(done, 1000);
    EXPECT_EQ(world.all_sum(sum), 1000 * 999 / 2);
}

// Who asks for everything gets half of its share of what is left; of what was expected only a guess
// is made, and more may come.
TEST(SharedCounter, ClaimsFollowWhatIsExpected) {
    World& world = test_world();
    const auto transport = make_transport("auto", world, nullptr);
    std::vector<int> members(static_cast<size_t>(world.size()));
    std::iota(members.begin(), members.end(), 0);
    SharedCounter counter(*transport, members, std::numeric_limits<int64_t>::max());
    transport->connect();
    if (world.rank() == 0) {
        counter.expect(1000);
        for (int64_t next = 0; next < 1100;) {
            counter.request(1000);
            const Claim claim = counter.poll().value();
            EXPECT_EQ(claim.begin, next);
            EXPECT_EQ(claim.count, std::max<int64_t>(0, 1000 - next) / (2 * world.size()) + 1);
            next += claim.count;
        }
    }
    world.barrier();
}

// The same, up to the limit.
TEST(SharedCounter, ClaimsShrinkTowardsTheEnd) {
    World& world = test_world();
    const auto transport = make_transport("auto", world, nullptr);
    std::vector<int> members(static_cast<size_t>(world.size()));
    std::iota(members.begin(), members.end(), 0);
    SharedCounter counter(*transport, members, 1000);
    transport->connect();
    if (world.rank() == 0) {
        int64_t left = 1000;
        for (bool more = true; more;) {
            counter.request(1000);
            const Claim claim = counter.poll().value();
            EXPECT_EQ(claim.count, std::min(left, left / (2 * world.size()) + 1));
            more = claim.count > 0;
            left -= claim.count;
        }
        EXPECT_EQ(left, 0);
    }
    world.barrier();
}

}  // namespace
}  // namespace ferry
