// Groups of ranks whose GPUs exchange rows over NCCL: byte for byte what the host's group gives,
// launched one by one and repeated. NCCL and the GPUs are emulated (tests/support/nccl_emulation).
#include <gtest/gtest.h>

#include <numeric>

#include "base/random.h"
#include "comm/block_transport.h"
#include "comm/tensor_parallel.h"
#include "layers/batch.h"
#include "tests/support/cuda_matrix.h"
#include "tests/support/mpi_main.h"

namespace ferry {
namespace {

constexpr int kSlices = 12;
constexpr int64_t kMostRows = 7, kDim = 300;
constexpr int64_t kVocab = 41;  // of which later ranks have more

// The host's group, of which the one between GPUs only asks how many rows there are.
class CountedGroup final : public TensorParallel {
  public:
    explicit CountedGroup(std::unique_ptr<TensorParallel> host) : host_(std::move(host)) {}
    int size() const override { return host_->size(); }
    int rank() const override { return host_->rank(); }
    int first_slice() const override { return host_->first_slice(); }
    int num_local_slices() const override { return host_->num_local_slices(); }
    Gathered gather_rows(const Tensor& x) override {
        ++num_gathers;
        return host_->gather_rows(x);
    }
    void reduce_scatter(const Tensor& parts, const Tensor& out) override {
        host_->reduce_scatter(parts, out);
    }
    void scatter_columns(const Tensor& local, std::span<const int64_t> column_offsets,
                         const Tensor& out) override {
        host_->scatter_columns(local, column_offsets, out);
    }
    void lookup_rows(std::span<const int32_t> ids, const Tensor& table,
                     std::span<const int64_t> row_offsets, const Tensor& out) override {
        host_->lookup_rows(ids, table, row_offsets, out);
    }
    int num_gathers = 0;

  private:
    std::unique_ptr<TensorParallel> host_;
};

struct Group {
    Group() {
        World& world = test_world();
        transport = make_transport("mpi", world, nullptr);
        std::vector<int> members(static_cast<size_t>(world.size()));
        std::iota(members.begin(), members.end(), 0);
        blocks = make_nccl_blocks(world, cuda_device(0), members);
        auto counted = std::make_unique<CountedGroup>(make_tensor_parallel(
            *transport, members, {.num_slices = kSlices, .stall_timeout_s = 60}, nullptr));
        host = counted.get();
        gpus = cuda_kernels().make_tensor_parallel(std::move(counted), *blocks, members,
                                                   {.dim = kDim,
                                                    .max_rows = kMostRows,
                                                    .num_columns = kVocab,
                                                    .max_wide_rows = kMostRows});
        transport->connect();
        vocab = {0};
        for (int rank = 1; rank < size(); ++rank)
            vocab.push_back(kVocab * rank * rank / size() / size());
        vocab.push_back(kVocab);
    }
    ~Group() {
        cuda_device(0).synchronize();
        test_world().barrier();
    }
    int size() const { return gpus->size(); }
    int rank() const { return gpus->rank(); }
    int64_t own_vocab() const { return vocab[size_t(rank()) + 1] - vocab[size_t(rank())]; }

    std::unique_ptr<Transport> transport;
    std::unique_ptr<BlockTransport> blocks;
    std::unique_ptr<TensorParallel> gpus;
    CountedGroup* host = nullptr;
    std::vector<int64_t> vocab;
};

std::vector<float> random_values(uint64_t seed, int64_t count) {
    Random random(seed);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = random.next_normal();
    return values;
}

// What a rank brings to one round of calls, and what the host's group makes of it.
struct Round {
    Round(Group& group, int64_t rows, int64_t width, uint64_t seed) : dim(width) {
        const int rank = group.rank();
        const uint64_t own_seed = seed * 10 + static_cast<uint64_t>(rank);
        x = random_values(own_seed, rows * dim);
        const Tensor own(x.data(), DType::f32, {rows, dim});
        const TensorParallel::Gathered all = group.host->gather_rows(own);
        gathered.assign(all.rows.as<float>(), all.rows.as<float>() + all.rows.count());
        total = all.rows.rows();
        parts = random_values(own_seed + 5, group.gpus->num_local_slices() * total * dim);
        reduced.resize(static_cast<size_t>(rows * dim));
        group.host->reduce_scatter(
            Tensor(parts.data(), DType::f32, {group.gpus->num_local_slices(), total, dim}),
            Tensor(reduced.data(), DType::f32, {rows, dim}));
        local = random_values(own_seed + 6, total * group.own_vocab());
        joined.resize(static_cast<size_t>(rows * kVocab));
        group.host->scatter_columns(Tensor(local.data(), DType::f32, {total, group.own_vocab()}),
                                    group.vocab, Tensor(joined.data(), DType::f32, {rows, kVocab}));
        Random random(own_seed + 7);
        for (int64_t i = 0; i < rows; ++i)
            ids.push_back(static_cast<int32_t>(random.next_u32() % kVocab));
        for (const float value : random_values(own_seed + 8, group.own_vocab() * dim))
            table.push_back(f32_to_bf16(value));
        found.resize(static_cast<size_t>(rows * dim));
        group.host->lookup_rows(ids, Tensor(table.data(), DType::bf16, {group.own_vocab(), dim}),
                                group.vocab, Tensor(found.data(), DType::f32, {rows, dim}));
    }
    int64_t dim, total = 0;
    std::vector<float> x, parts, local;
    std::vector<int32_t> ids;
    std::vector<uint16_t> table;
    std::vector<float> gathered, reduced, joined, found;
};

// The same calls on GPUs, and what came of them.
struct OnGpus {
    OnGpus(Group& group, int64_t rows, int64_t total, int64_t dim)
        : x(DType::f32, {rows, dim}),
          parts(DType::f32, {group.gpus->num_local_slices(), total, dim}),
          local(DType::f32, {total, group.own_vocab()}),
          table(DType::bf16, {group.own_vocab(), dim}),
          gathered(DType::f32, {total, dim}),
          reduced(DType::f32, {rows, dim}),
          joined(DType::f32, {rows, kVocab}),
          found(DType::f32, {rows, dim}) {}
    void bring(const Round& round) {
        const auto put = [](const CudaTensor& to, const void* from) {
            const Tensor& tensor = to.view();
            cuda_device(0).copy_from_host(
                tensor.data(), from,
                static_cast<size_t>(tensor.count() * size_bytes(tensor.dtype())));
        };
        put(x, round.x.data());
        put(parts, round.parts.data());
        put(local, round.local.data());
        put(table, round.table.data());
    }
    void run(Group& group, std::span<const int32_t> ids) {
        group.gpus->lookup_rows(ids, table, group.vocab, found);
        const Tensor all = group.gpus->gather_rows(x).rows;
        // The group's memory is that of the next call too.
        cuda_kernels().tree_sum(all.reshape({1, all.rows(), all.dim(1)}), gathered);
        group.gpus->reduce_scatter(parts, reduced);
        group.gpus->scatter_columns(local, group.vocab, joined);
    }
    void expect(const Round& round) const {
        expect_same_bits(gathered.values(), round.gathered);
        expect_same_bits(reduced.values(), round.reduced);
        expect_same_bits(joined.values(), round.joined);
        expect_same_bits(found.values(), round.found);
    }
    CudaTensor x, parts, local, table, gathered, reduced, joined, found;
};

TEST(CudaTensorParallel, GivesTheBytesOfTheHostsGroup) {
    Group group;
    for (int round = 0; round < 9; ++round) {
        // Also none, on some ranks and (in round 7) on all.
        const int64_t rows = round == 7 ? 0 : (group.rank() * 3 + round * 5) % (kMostRows + 1);
        SCOPED_TRACE(fmt::format("round {}, {} rows", round, rows));
        const Round on_host(group, rows, round % 3 == 0 ? kDim : 1 + 32 * round,
                            static_cast<uint64_t>(round));
        OnGpus on_gpus(group, rows, on_host.total, on_host.dim);
        on_gpus.bring(on_host);
        const int before = group.host->num_gathers;
        on_gpus.run(group, on_host.ids);
        EXPECT_EQ(group.host->num_gathers - before, 2);
        on_gpus.expect(on_host);
    }
}

// As decode steps are: the first launched, the second recorded, later ones repeated.
TEST(CudaTensorParallel, IsRepeatedWithoutTheHost) {
    Group group;
    const int64_t rows = 4;
    ModelConfig model;
    model.n_heads = model.kv_lora_rank = 1;
    const std::unique_ptr<StepGraphs> graphs = cuda_kernels().make_step_graphs(model);
    OnGpus on_gpus(group, rows, rows * group.size(), kDim);
    std::vector<int32_t> ids(static_cast<size_t>(rows));  // stay where they are
    for (uint64_t step = 0; step < 5; ++step) {
        SCOPED_TRACE(step);
        const Round on_host(group, rows, kDim, 50 + step);
        on_gpus.bring(on_host);
        ids = on_host.ids;
        const int before = group.host->num_gathers;
        group.gpus->expect_equal_rows(true);
        graphs->begin({.num_rows = rows, .num_keys = 1024});
        StepBatch batch;
        batch.tokens = ids;
        cuda_kernels().begin_step(batch);
        graphs->run([&] { on_gpus.run(group, ids); });
        group.gpus->expect_equal_rows(false);
        EXPECT_EQ(group.host->num_gathers, before);
        on_gpus.expect(on_host);
    }
    EXPECT_EQ(graphs->counts().launched, 1);
    EXPECT_EQ(graphs->counts().recorded, 1);
    EXPECT_EQ(graphs->counts().repeated, 3);
}

}  // namespace
}  // namespace ferry
