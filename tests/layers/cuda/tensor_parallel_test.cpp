// The kernels of tensor parallelism (tensor_parallel_launch.h) against plain loops.
#include <gtest/gtest.h>

#include <functional>

#include "base/random.h"
#include "comm/tensor_parallel.h"
#include "layers/cuda/tensor_parallel_launch.h"
#include "tests/support/cuda_matrix.h"

namespace ferry {
namespace {

CUstream_st* stream() {
    cuda_device(0).make_current();
    return cuda_device(0).stream();
}

std::vector<float> random_values(uint64_t seed, int64_t count) {
    Random random(seed);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = random.next_normal();
    return values;
}
CudaTensor on_device(const std::vector<float>& values) {
    return CudaTensor(Tensor(values.data(), DType::f32, {static_cast<int64_t>(values.size()), 1}));
}

// The parts of a tree over slices that travel in a group, and its sums by the definition.
struct Tree {
    Tree(int num_slices, int group) {
        const int per_rank = num_slices / group;
        for (int rank = 0; rank < group; ++rank)
            for (const SliceNode& node :
                 slice_nodes(num_slices, rank * per_rank, (rank + 1) * per_rank))
                nodes.push_back(node);
        merges.assign(nodes.size(), 0);
        count_merges(0, num_slices);
    }
    void count_merges(int begin, int end) {
        for (size_t i = 0; i < nodes.size(); ++i) {
            if (nodes[i] == SliceNode{begin, end}) return;
            if (nodes[i].end == end) ++merges[i];
        }
        const int middle = begin + (end - begin) / 2;
        count_merges(begin, middle);
        count_merges(middle, end);
    }
    float sum(int begin, int end, const std::function<float(size_t)>& value_of) const {
        for (size_t i = 0; i < nodes.size(); ++i)
            if (nodes[i] == SliceNode{begin, end}) return value_of(i);
        const int middle = begin + (end - begin) / 2;
        return sum(begin, middle, value_of) + sum(middle, end, value_of);
    }
    std::vector<SliceNode> nodes;
    std::vector<int> merges;
};

TEST(CudaTensorParallelKernels, SumsHaveTheOrderOfTheTree) {
    for (const auto& [num_slices, group] : {std::pair{8, 2},
                                            {8, 4},
                                            {8, 8},
                                            {12, 3},
                                            {12, 4},
                                            {24, 6},
                                            {1000, 5},
                                            {16, 16},
                                            {7, 7}}) {
        const Tree tree(num_slices, group);
        for (const int64_t count : {1, 4, 1027, 2048}) {
            SCOPED_TRACE(fmt::format("{} slices, {} ranks, {} values", num_slices, group, count));
            NodeSum params{.num_nodes = static_cast<int32_t>(tree.nodes.size()), .count = count};
            std::vector<std::vector<float>> values;
            std::vector<CudaTensor> nodes;
            for (size_t i = 0; i < tree.nodes.size(); ++i) {
                values.push_back(random_values(100 * i + static_cast<uint64_t>(count), count));
                nodes.push_back(on_device(values.back()));
                params.nodes[i] = nodes.back().view().as<float>();
                params.merges[i] = static_cast<uint8_t>(tree.merges[i]);
            }
            const CudaTensor out(DType::f32, {count});
            params.out = out.view().as<float>();
            launch_node_sum(params, stream());
            std::vector<float> expected;
            for (size_t at = 0; at < static_cast<size_t>(count); ++at)
                expected.push_back(
                    tree.sum(0, num_slices, [&](size_t node) { return values[node][at]; }));
            expect_same_bits(out.values(), expected);
        }
    }
}

TEST(CudaTensorParallelKernels, HeldRowsAreWidenedAndOthersLeftAlone) {
    const std::vector<int32_t> ids{9, 4, 5, 8, 3, 5};
    const CudaTensor on_gpu(Tensor(ids.data(), DType::i32, {6, 1}));
    for (const int64_t dim : {3, 64, 1030}) {
        const int64_t first = 4, num_held = 5;
        const std::vector<float> table = random_values(1, num_held * dim);
        std::vector<uint16_t> narrow;
        for (const float value : table) narrow.push_back(f32_to_bf16(value));
        for (const DType dtype : {DType::f32, DType::bf16}) {
            const CudaTensor held(Tensor(dtype == DType::f32
                                             ? static_cast<const void*>(table.data())
                                             : static_cast<const void*>(narrow.data()),
                                         dtype, {num_held, dim}));
            std::vector<float> expected(ids.size() * static_cast<size_t>(dim), -1.0f);
            const CudaTensor out(Tensor(expected.data(), DType::f32, {6, dim}));
            launch_held_rows({.ids = on_gpu.view().as<int32_t>(),
                              .num_ids = 6,
                              .table = held.view().data(),
                              .dtype = dtype,
                              .first = first,
                              .num_held = num_held,
                              .dim = dim,
                              .out = out.view().as<float>()},
                             stream());
            for (size_t i = 0; i < ids.size(); ++i)
                for (int64_t c = 0; c < dim; ++c) {
                    const int64_t at = (ids[i] - first) * dim + c;
                    if (ids[i] < first || ids[i] >= first + num_held) continue;
                    expected[i * static_cast<size_t>(dim) + static_cast<size_t>(c)] =
                        dtype == DType::f32 ? table[static_cast<size_t>(at)]
                                            : bf16_to_f32(narrow[static_cast<size_t>(at)]);
                }
            expect_same_bits(out.values(), expected);
        }
    }
}

TEST(CudaTensorParallelKernels, RowsComeFromWhoHoldsThem) {
    const std::vector<int32_t> ids{0, 9, 4, 5, 3, 8};  // row 4 on is with the second, 9 the third
    const CudaTensor on_gpu(Tensor(ids.data(), DType::i32, {6, 1}));
    const int member_of[] = {0, 2, 1, 1, 0, 1};
    for (const int64_t dim : {5, 64, 1030}) {
        ChosenRows params{.ids = on_gpu.view().as<int32_t>(), .num_ids = 6, .dim = dim};
        params.from.num_members = 3;
        const int offsets[] = {0, 4, 9, 10};
        std::copy_n(offsets, 4, params.from.offsets);
        std::vector<std::vector<float>> values;
        std::vector<CudaTensor> blocks;
        for (int m = 0; m < 3; ++m) {
            values.push_back(random_values(static_cast<uint64_t>(m), 6 * dim));
            blocks.push_back(on_device(values.back()));
            params.from.blocks[m] = blocks.back().view().as<float>();
        }
        const CudaTensor out(DType::f32, {6, dim});
        params.out = out.view().as<float>();
        launch_chosen_rows(params, stream());
        std::vector<float> expected;
        for (int64_t i = 0; i < 6; ++i) {
            const auto row = values[static_cast<size_t>(member_of[i])].begin() + i * dim;
            expected.insert(expected.end(), row, row + dim);
        }
        expect_same_bits(out.values(), expected);
    }
}

TEST(CudaTensorParallelKernels, ColumnsAreJoined) {
    for (const std::vector<int32_t>& offsets :
         {std::vector<int32_t>{0, 128, 256}, {0, 3, 3, 1030}, {0, 512, 513, 520, 2048}})
        for (const int64_t rows : {1, 5}) {
            const auto members = static_cast<int32_t>(offsets.size()) - 1;
            const int64_t columns = offsets.back();
            JoinedColumns params{.num_rows = rows, .out_stride = columns};
            params.from.num_members = members;
            std::ranges::copy(offsets, params.from.offsets);
            std::vector<CudaTensor> blocks;
            std::vector<float> expected(static_cast<size_t>(rows * columns));
            for (int m = 0; m < members; ++m) {
                const size_t member = static_cast<size_t>(m);
                const int64_t own = offsets[member + 1] - offsets[member];
                const std::vector<float> values =
                    random_values(member, std::max<int64_t>(1, rows * own));
                blocks.push_back(on_device(values));
                params.from.blocks[m] = blocks.back().view().as<float>();
                for (int64_t row = 0; row < rows; ++row)
                    std::copy_n(values.begin() + row * own, own,
                                expected.begin() + row * columns + offsets[member]);
            }
            const CudaTensor out(DType::f32, {rows, columns});
            params.out = out.view().as<float>();
            launch_joined_columns(params, stream());
            expect_same_bits(out.values(), expected);
        }
}

TEST(CudaTensorParallelKernels, NoRowsAreNothing) {
    launch_node_sum({}, stream());
    launch_held_rows({}, stream());
    launch_chosen_rows({}, stream());
    launch_joined_columns({}, stream());
    cuda_device(0).synchronize();
}

}  // namespace
}  // namespace ferry
