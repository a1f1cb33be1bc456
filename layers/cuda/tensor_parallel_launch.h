// The kernels of tensor parallelism between GPUs as the host sees them. Includes neither CUDA's
// headers nor heavy ones of the host. What they take lies in kernel parameters (at most 4 KiB), so
// that a graph holds it.
#pragma once
#include <cstdint>

#include "base/dtype.h"

struct CUstream_st;

namespace ferry {

constexpr int kMostSumNodes = 256;      // parts of a sum
constexpr int kMostGroupMembers = 256;  // no more than parts of a sum

// out[i] = the sum of nodes[..][i], f32, in the order of their tree: after node n, merges[n] times,
// the last two sums that are still open become one, left + right.
struct NodeSum {
    int32_t num_nodes = 0;
    uint8_t merges[kMostSumNodes] = {};
    const float* nodes[kMostSumNodes] = {};  // [count]
    float* out = nullptr;                    // [count]
    int64_t count = 0;
};
void launch_node_sum(const NodeSum& params, CUstream_st* stream);

// Rows of a table that begins with row `first` of a larger one: out[i] = row ids[i], widened. Those
// that it does not have stay as they are.
struct HeldRows {
    const int32_t* ids = nullptr;  // [num_ids]
    int64_t num_ids = 0;
    const void* table = nullptr;  // [num_held, dim] f32 or bf16
    DType dtype = DType::f32;
    int64_t first = 0, num_held = 0, dim = 0;
    float* out = nullptr;  // [num_ids, dim]
};
void launch_held_rows(const HeldRows& params, CUstream_st* stream);

// What came from each member.
struct MemberBlocks {
    int32_t num_members = 0;
    int32_t offsets[kMostGroupMembers + 1] = {};  // of its rows of a table, or columns
    const float* blocks[kMostGroupMembers] = {};  // [rows, dim], or [rows, its columns]
};

// out[i] = row i of the block of the member that has row ids[i] of the table.
struct ChosenRows {
    MemberBlocks from{};
    const int32_t* ids = nullptr;  // [num_ids]
    int64_t num_ids = 0, dim = 0;
    float* out = nullptr;  // [num_ids, dim]
};
void launch_chosen_rows(const ChosenRows& params, CUstream_st* stream);

// Columns [offsets[m], offsets[m + 1]) of out are the block of member m.
struct JoinedColumns {
    MemberBlocks from{};
    int64_t num_rows = 0, out_stride = 0;
    float* out = nullptr;  // [num_rows, all columns]
};
void launch_joined_columns(const JoinedColumns& params, CUstream_st* stream);

}  // namespace ferry
