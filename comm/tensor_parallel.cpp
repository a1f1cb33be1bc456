#include "comm/tensor_parallel.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "base/trace.h"
#include "comm/row_codec.h"
#include "comm/waiter.h"

namespace ferry {
namespace {

constexpr int kChannel = 64;
constexpr int64_t kColumns =
    256;  // summed at a time: partial sums of a tree stay in registers and L1

void collect_nodes(int lo, int hi, int begin, int end, std::vector<SliceNode>& nodes) {
    if (hi <= begin || end <= lo) return;
    if (begin <= lo && hi <= end) {
        nodes.push_back({lo, hi});
        return;
    }
    const int middle = lo + (hi - lo) / 2;
    collect_nodes(lo, middle, begin, end, nodes);
    collect_nodes(middle, hi, begin, end, nodes);
}

struct CountHeader {
    int64_t num_rows = 0;
    int64_t row_bytes = 0;
    int64_t has_rows = 0;  // in this message
};

class TensorParallelImpl final : public TensorParallel {
  public:
    TensorParallelImpl(Transport& transport, std::vector<int> members,
                       const TensorParallelOptions& options, ThreadPool* threads)
        : transport_(transport),
          members_(std::move(members)),
          options_(options),
          threads_(threads),
          waiter_(transport, options.stall_timeout_s),
          peers_(members_.size()),
          offsets_(members_.size() + 1) {
        rank_ = static_cast<int>(std::find(members_.begin(), members_.end(), transport.rank()) -
                                 members_.begin());
        FERRY_CHECK(rank_ < size(), "rank {} is not in this group", transport.rank());
        if (options.num_slices % size() != 0)
            throw Error(ErrorKind::usage,
                        "layout.tp_slices {} is no multiple of the tensor-parallel size {}",
                        options.num_slices, size());
        const size_t slot =
            kMessageUnit + round_up_message(static_cast<size_t>(options.inline_bytes));
        for (int p = 0; p < size(); ++p) {
            if (p == rank_) continue;
            Peer& peer = peers_[p];
            const int world_rank = members_[p];
            // Counts alternate between two slots: a peer may be one gather ahead.
            for (int parity = 0; parity < 2; ++parity) {
                const int channel = kChannel + parity;
                peer.count_out[parity] =
                    transport.open_send({world_rank, channel, LaneKind::slot, slot});
                peer.count_in[parity] =
                    transport.open_receive({world_rank, channel, LaneKind::slot, slot});
            }
            peer.out = transport.open_send({world_rank, kChannel + 2, LaneKind::sized, 0});
            peer.in = transport.open_receive({world_rank, kChannel + 2, LaneKind::sized, 0});
        }
        const int per_rank = num_local_slices();
        node_at_.resize(static_cast<size_t>(options.num_slices + 1) * (options.num_slices + 1), -1);
        for (int p = 0; p < size(); ++p)
            for (const SliceNode& node :
                 slice_nodes(options.num_slices, p * per_rank, (p + 1) * per_rank)) {
                node_index(node.begin, node.end) = static_cast<int>(nodes_.size());
                nodes_.push_back({node, p});
                ++peers_[p].num_nodes;
            }
        node_rows_.resize(nodes_.size());
    }

    int size() const override { return static_cast<int>(members_.size()); }
    int rank() const override { return rank_; }
    int first_slice() const override { return rank_ * num_local_slices(); }
    int num_local_slices() const override { return options_.num_slices / size(); }

    Gathered gather_rows(const Tensor& x) override;
    void reduce_scatter(const Tensor& parts, const Tensor& out) override;
    void scatter_columns(const Tensor& local, std::span<const int64_t> column_offsets,
                         const Tensor& out) override;
    void lookup_rows(std::span<const int32_t> ids, const Tensor& table,
                     std::span<const int64_t> row_offsets, const Tensor& out) override;

  private:
    struct Peer {
        std::array<LaneId, 2> count_out{}, count_in{};
        LaneId out = -1, in = -1;
        int num_nodes = 0;
        bool done = true;
        const std::byte* received = nullptr;
    };
    struct OwnedNode {
        SliceNode node;
        int owner;
    };

    int& node_index(int lo, int hi) {
        return node_at_[static_cast<size_t>(lo) * (options_.num_slices + 1) + hi];
    }
    int64_t rows_of(int member) const { return offsets_[member + 1] - offsets_[member]; }

    template <typename Fn>
    void each_peer(Fn&& fn) {
        for (int i = 1; i < size(); ++i) {
            const int p = (rank_ + i) % size();
            fn(p, peers_[p]);
        }
    }
    template <typename Fn>
    void parallel(int64_t num, Fn&& fn) {
        if (threads_ != nullptr)
            threads_->parallel_for(num, [&](int64_t i, int) { fn(i); });
        else
            for (int64_t i = 0; i < num; ++i) fn(i);
    }
    template <typename Done>
    void wait(Done&& done) {
        if (done()) return;
        waiter_.begin(Activity::waiting_tensor_parallel, -1, -1);
        while (!done())
            waiter_.poll([&](auto add) {
                for (int p = 0; p < size(); ++p)
                    if (!peers_[p].done) add(members_[p]);
            });
        waiter_.end();
    }
    void wait_sent(Peer& peer, LaneId lane) {
        wait([&] { return peer.done = transport_.sent(lane); });
    }
    // What every peer that is not done sends on lane_of(peer).
    template <typename LaneOf>
    void wait_arrived(LaneOf&& lane_of) {
        wait([&] {
            transport_.progress();
            bool all = true;
            each_peer([&](int, Peer& peer) {
                peer.done = peer.done || transport_.arrived(lane_of(peer));
                all = all && peer.done;
            });
            return all;
        });
    }
    // The parts of gather_rows(), whose counts go by the slot `parity`.
    void send_rows(const Tensor& x, int parity);
    void count_rows(const Tensor& x, int parity);  // sets offsets_, expects rows that come apart
    void place_rows(const Tensor& x, int parity);  // into gathered_
    const CountHeader& header_of(const Peer& peer, int parity) {
        return *reinterpret_cast<const CountHeader*>(transport_.buffer(peer.count_in[parity]));
    }
    // All-to-all of blocks whose sizes both ends know. pack(member, memory) fills what goes to a
    // member; peers_[].received is what came. Empty blocks do not travel.
    template <typename SendBytes, typename ReceiveBytes, typename Pack>
    void swap_blocks(SendBytes&& send_bytes, ReceiveBytes&& receive_bytes, Pack&& pack);
    // The sum over the tree node [lo, hi), `num` columns of one row: where leaf(lo, hi) says, or in
    // `room`.
    template <typename Leaf>
    const float* tree(int lo, int hi, int64_t num, float* room, const Leaf& leaf);
    // The same, into `out`.
    template <typename Leaf>
    void sum_tree(int lo, int hi, int64_t num, float* out, const Leaf& leaf) {
        const float* sum = tree(lo, hi, num, out, leaf);
        if (sum != out) std::copy_n(sum, num, out);
    }

    Transport& transport_;
    std::vector<int> members_;
    TensorParallelOptions options_;
    ThreadPool* threads_;
    Waiter waiter_;
    int rank_ = 0;
    std::vector<Peer> peers_;
    std::vector<OwnedNode> nodes_;  // the parts of the tree that travel, by owner
    std::vector<int> node_at_;
    std::vector<const float*> node_rows_;  // in a sum: by node
    std::vector<int64_t> offsets_;
    Buffer gathered_;
    Buffer own_nodes_;  // [own nodes, own rows, dim]
    int64_t num_gathers_ = 0;
};

void grow(Buffer& buffer, int64_t num_bytes) {
    if (static_cast<size_t>(num_bytes) <= buffer.size_bytes()) return;
    buffer = Buffer();
    buffer = Buffer(cpu_device(), static_cast<size_t>(num_bytes + num_bytes / 4));
}

void copy_rows(const Tensor& x, std::byte* out) {
    const auto row_bytes = static_cast<size_t>(x.row_size() * size_bytes(x.dtype()));
    for (int64_t row = 0; row < x.rows(); ++row)
        std::memcpy(out + static_cast<size_t>(row) * row_bytes, x.row<std::byte>(row), row_bytes);
}

TensorParallel::Gathered TensorParallelImpl::gather_rows(const Tensor& x) {
    ScopedZone zone(Zone::tensor_parallel);
    FERRY_CHECK(x.rank() == 2 && size_bytes(x.dtype()) == 4, "gather_rows of {}", x.describe());
    if (size() == 1) {
        offsets_ = {0, x.rows()};
        if (x.contiguous()) return {x, offsets_};
    }
    const int parity = static_cast<int>(num_gathers_++ & 1);
    send_rows(x, parity);
    each_peer([](int, Peer& peer) { peer.done = false; });
    wait_arrived([&](const Peer& peer) { return peer.count_in[parity]; });
    count_rows(x, parity);
    place_rows(x, parity);
    zone.bytes = offsets_.back() * x.row_size() * 4;
    return {Tensor(gathered_.data(), x.dtype(), {offsets_.back(), x.row_size()}), offsets_};
}

// Few rows travel with their count, in one message.
void TensorParallelImpl::send_rows(const Tensor& x, int parity) {
    const int64_t row_bytes = x.row_size() * 4, own_bytes = x.rows() * row_bytes;
    const bool fits = own_bytes <= options_.inline_bytes;
    each_peer([&](int, Peer& peer) {
        const LaneId lane = peer.count_out[parity];
        wait_sent(peer, lane);
        std::byte* memory = transport_.buffer(lane);
        *reinterpret_cast<CountHeader*>(memory) = {x.rows(), row_bytes, fits};
        LaneSend sends[2] = {{lane, kMessageUnit}, {}};
        if (fits) {
            copy_rows(x, memory + kMessageUnit);
            sends[0].size_bytes += round_up_message(static_cast<size_t>(own_bytes));
        } else {
            wait_sent(peer, peer.out);
            sends[1] = {peer.out, round_up_message(static_cast<size_t>(own_bytes))};
            transport_.reserve(peer.out, sends[1].size_bytes);
            copy_rows(x, transport_.buffer(peer.out));
        }
        transport_.send({sends, fits ? size_t{1} : size_t{2}});
    });
}

void TensorParallelImpl::count_rows(const Tensor& x, int parity) {
    const int64_t row_bytes = x.row_size() * 4;
    offsets_[0] = 0;
    for (int p = 0; p < size(); ++p) {
        int64_t rows = x.rows();
        if (p != rank_) {
            const CountHeader& header = header_of(peers_[p], parity);
            FERRY_CHECK(header.row_bytes == row_bytes, "rank {} gathers rows of {} bytes, not {}",
                        members_[p], header.row_bytes, row_bytes);
            rows = header.num_rows;
            if (!header.has_rows) {
                const size_t bytes = round_up_message(static_cast<size_t>(rows * row_bytes));
                transport_.reserve(peers_[p].in, bytes);
                transport_.expect(peers_[p].in, bytes);
                peers_[p].done = false;
            }
        }
        offsets_[p + 1] = offsets_[p] + rows;
    }
}

void TensorParallelImpl::place_rows(const Tensor& x, int parity) {
    const int64_t row_bytes = x.row_size() * 4;
    grow(gathered_, offsets_.back() * row_bytes);
    const auto place = [&](int p) { return gathered_.as<std::byte>() + offsets_[p] * row_bytes; };
    copy_rows(x, place(rank_));
    wait_arrived([](const Peer& peer) { return peer.in; });
    each_peer([&](int p, Peer& peer) {
        const std::byte* from = header_of(peer, parity).has_rows
                                    ? transport_.buffer(peer.count_in[parity]) + kMessageUnit
                                    : transport_.buffer(peer.in);
        std::copy_n(from, rows_of(p) * row_bytes, place(p));
        transport_.expect(
            peer.count_in[parity],
            kMessageUnit + round_up_message(static_cast<size_t>(options_.inline_bytes)));
    });
}

template <typename SendBytes, typename ReceiveBytes, typename Pack>
void TensorParallelImpl::swap_blocks(SendBytes&& send_bytes, ReceiveBytes&& receive_bytes,
                                     Pack&& pack) {
    each_peer([&](int p, Peer& peer) {
        const size_t bytes = round_up_message(static_cast<size_t>(receive_bytes(p)));
        peer.done = bytes == 0;
        if (bytes == 0) return;
        transport_.reserve(peer.in, bytes);
        transport_.expect(peer.in, bytes);
    });
    each_peer([&](int p, Peer& peer) {
        const size_t bytes = round_up_message(static_cast<size_t>(send_bytes(p)));
        if (bytes == 0) return;
        wait([&] { return transport_.sent(peer.out); });
        transport_.reserve(peer.out, bytes);
        pack(p, transport_.buffer(peer.out));
        const LaneSend send{peer.out, bytes};
        transport_.send({&send, 1});
    });
    wait_arrived([](const Peer& peer) { return peer.in; });
    each_peer([&](int p, Peer& peer) {
        if (receive_bytes(p) > 0) peer.received = transport_.buffer(peer.in);
    });
}

template <typename Leaf>
const float* TensorParallelImpl::tree(int lo, int hi, int64_t num, float* room, const Leaf& leaf) {
    if (const float* values = leaf(lo, hi)) return values;
    const int middle = lo + (hi - lo) / 2;
    float right_room[kColumns];
    const float* left = tree(lo, middle, num, room, leaf);
    const float* right = tree(middle, hi, num, right_room, leaf);
    for (int64_t i = 0; i < num; ++i) room[i] = left[i] + right[i];
    return room;
}

void TensorParallelImpl::reduce_scatter(const Tensor& parts, const Tensor& out) {
    ScopedZone zone(Zone::tensor_parallel);
    const int64_t total = offsets_.back();
    const int64_t dim = out.row_size();
    check_shape(parts, "parts", DType::f32, {num_local_slices(), total, dim});
    check_shape(out, "out", DType::f32, {rows_of(rank_), dim});
    FERRY_CHECK(parts.contiguous());

    // The sums of this rank's own nodes for one member's rows: [nodes, rows, dim].
    const auto sum_nodes = [&](int member, float* to) {
        const int64_t rows = rows_of(member);
        int index = 0;
        for (const OwnedNode& owned : nodes_) {
            if (owned.owner != rank_) continue;
            float* node_rows = to + index++ * rows * dim;
            parallel(rows, [&](int64_t row) {
                for (int64_t column = 0; column < dim; column += kColumns)
                    sum_tree(owned.node.begin, owned.node.end, std::min(kColumns, dim - column),
                             node_rows + row * dim + column, [&](int lo, int hi) -> const float* {
                                 if (hi - lo > 1) return nullptr;
                                 return parts.as<float>() +
                                        ((lo - first_slice()) * total + offsets_[member] + row) *
                                            dim +
                                        column;
                             });
            });
        }
    };
    if (size() == 1 && out.contiguous()) {
        zone.bytes = total * dim * 4;
        return sum_nodes(rank_, out.as<float>());
    }
    const int64_t own_nodes = peers_[rank_].num_nodes;
    swap_blocks([&](int p) { return own_nodes * rows_of(p) * dim * 4; },
                [&](int p) { return peers_[p].num_nodes * rows_of(rank_) * dim * 4; },
                [&](int p, std::byte* memory) { sum_nodes(p, reinterpret_cast<float*>(memory)); });
    const int64_t rows = rows_of(rank_);
    if (rows == 0) return;
    grow(own_nodes_, own_nodes * rows * dim * 4);
    sum_nodes(rank_, own_nodes_.as<float>());
    peers_[rank_].received = own_nodes_.as<std::byte>();

    // Where a node's rows are: nodes_ lists each owner's nodes in the order in which they travel.
    int index = 0;
    for (size_t i = 0; i < nodes_.size(); ++i) {
        index = i > 0 && nodes_[i].owner == nodes_[i - 1].owner ? index + 1 : 0;
        node_rows_[i] =
            reinterpret_cast<const float*>(peers_[nodes_[i].owner].received) + index * rows * dim;
    }
    parallel(rows, [&](int64_t row) {
        for (int64_t column = 0; column < dim; column += kColumns)
            sum_tree(0, options_.num_slices, std::min(kColumns, dim - column),
                     out.row<float>(row) + column, [&](int lo, int hi) -> const float* {
                         const int node = node_index(lo, hi);
                         return node < 0 ? nullptr : node_rows_[node] + row * dim + column;
                     });
    });
    zone.bytes = static_cast<int64_t>(nodes_.size()) * rows * dim * 4;
}

void TensorParallelImpl::scatter_columns(const Tensor& local,
                                         std::span<const int64_t> column_offsets,
                                         const Tensor& out) {
    ScopedZone zone(Zone::tensor_parallel);
    FERRY_CHECK(static_cast<int>(column_offsets.size()) == size() + 1);
    const auto columns_of = [&](int p) { return column_offsets[p + 1] - column_offsets[p]; };
    check_shape(local, "local", DType::f32, {offsets_.back(), columns_of(rank_)});
    check_shape(out, "out", DType::f32, {rows_of(rank_), column_offsets.back()});
    swap_blocks([&](int p) { return rows_of(p) * columns_of(rank_) * 4; },
                [&](int p) { return rows_of(rank_) * columns_of(p) * 4; },
                [&](int p, std::byte* memory) {
                    copy_rows(local.slice_rows(offsets_[p], rows_of(p)), memory);
                });
    const int64_t rows = rows_of(rank_);
    for (int p = 0; p < size(); ++p) {
        const int64_t columns = columns_of(p);
        for (int64_t row = 0; row < rows; ++row) {
            const float* from =
                p == rank_ ? local.row<float>(offsets_[p] + row)
                           : reinterpret_cast<const float*>(peers_[p].received) + row * columns;
            std::copy_n(from, columns, out.row<float>(row) + column_offsets[p]);
        }
    }
    zone.bytes = rows * column_offsets.back() * 4;
}

void TensorParallelImpl::lookup_rows(std::span<const int32_t> ids, const Tensor& table,
                                     std::span<const int64_t> row_offsets, const Tensor& out) {
    const auto num_ids = static_cast<int64_t>(ids.size());
    const int64_t dim = table.row_size();
    check_shape(out, "out", DType::f32, {num_ids, dim});
    FERRY_CHECK(static_cast<int>(row_offsets.size()) == size() + 1 &&
                table.rows() == row_offsets[rank_ + 1] - row_offsets[rank_]);
    const auto has = [&](int member, int32_t id) {
        return id >= row_offsets[member] && id < row_offsets[member + 1];
    };
    const auto copy_row = [&](int32_t id, float* to) {
        decode_row(table.dtype(), table.row<std::byte>(id - row_offsets[rank_]), nullptr, dim, to);
    };
    const Gathered all = gather_rows(Tensor(ids.data(), DType::i32, {num_ids, 1}));
    ScopedZone zone(Zone::tensor_parallel);
    // Of the ids of `asker`, those that `holder` has.
    const auto count = [&](int asker, int holder) {
        int64_t num = 0;
        for (int64_t i = offsets_[asker]; i < offsets_[asker + 1]; ++i)
            num += has(holder, *all.rows.row<int32_t>(i)) ? 1 : 0;
        return num;
    };
    swap_blocks([&](int p) { return count(p, rank_) * dim * 4; },
                [&](int p) { return count(rank_, p) * dim * 4; },
                [&](int p, std::byte* memory) {
                    float* to = reinterpret_cast<float*>(memory);
                    for (int64_t i = offsets_[p]; i < offsets_[p + 1]; ++i) {
                        const int32_t id = *all.rows.row<int32_t>(i);
                        if (!has(rank_, id)) continue;
                        copy_row(id, to);
                        to += dim;
                    }
                });
    for (int p = 0; p < size(); ++p) {
        const float* from = reinterpret_cast<const float*>(peers_[p].received);
        for (int64_t i = 0; i < num_ids; ++i) {
            if (!has(p, ids[i])) continue;
            if (p == rank_) {
                copy_row(ids[i], out.row<float>(i));
            } else {
                std::copy_n(from, dim, out.row<float>(i));
                from += dim;
            }
        }
    }
    for (int32_t id : ids)
        FERRY_CHECK(id >= row_offsets[0] && id < row_offsets.back(), "row {} of a table of {}", id,
                    row_offsets.back());
}

}  // namespace

std::vector<SliceNode> slice_nodes(int num_slices, int begin, int end) {
    std::vector<SliceNode> nodes;
    collect_nodes(0, num_slices, begin, end, nodes);
    return nodes;
}

TensorParallelMemory tensor_parallel_memory(int num_slices, int size, int rank,
                                            const TensorParallelSizes& sizes) {
    const int per_rank = num_slices / size;
    const int64_t row_bytes = 4 * sizes.dim, all_rows = size * sizes.max_rows;
    int64_t own_sums = 0, others_nodes = 0;
    for (int p = 0; p < size; ++p)
        for (const SliceNode& node : slice_nodes(num_slices, p * per_rank, (p + 1) * per_rank)) {
            others_nodes += p == rank ? 0 : 1;
            own_sums += p == rank && node.end - node.begin > 1 ? 1 : 0;
        }
    return {.gathered = all_rows * row_bytes,
            .ids = 4 * all_rows,
            .sums = own_sums * all_rows * row_bytes,
            .received = std::max(others_nodes * sizes.max_rows * row_bytes,
                                 4 * sizes.max_wide_rows * sizes.num_columns)};
}

std::unique_ptr<TensorParallel> make_tensor_parallel(Transport& transport, std::vector<int> members,
                                                     const TensorParallelOptions& options,
                                                     ThreadPool* threads) {
    return std::make_unique<TensorParallelImpl>(transport, std::move(members), options, threads);
}

}  // namespace ferry
