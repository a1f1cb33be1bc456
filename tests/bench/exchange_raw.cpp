// The exchange beside a raw MPI_Alltoallv of the same bytes: what packing, ordering and summing
// cost.
//   mpirun -n 4 exchange_raw [tokens dim topk experts rounds threads]          (all ranks are both)
//   mpirun -n 5 exchange_raw ... with FERRY_ATTENTION_RANKS=1                  (1 attention, 4
//   expert)
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "base/trace.h"
#include "comm/exchange.h"
#include "comm/mpi_api.h"
#include "comm/wire.h"
#include "comm/world.h"
#include "tests/comm/exchange_reference.h"

namespace ferry {
namespace {

struct Times {
    std::vector<double> us;
    double quantile(double q) {
        std::sort(us.begin(), us.end());
        return us[static_cast<size_t>(q * static_cast<double>(us.size() - 1))];
    }
};

// Bytes of dispatch messages by pair [from][to], from every rank's own routing.
std::vector<int> message_bytes(World& world, const ExchangeSetup& setup, const Tokens& tokens,
                               bool replies) {
    const int size = world.size();
    std::vector<int> own(size, 0), all(static_cast<size_t>(size) * size);
    const int a = setup.layout.attention_rank(world.rank());
    if (a >= 0) {
        std::vector<int64_t> entries(setup.layout.num_expert(), 0), rows = entries;
        for (int64_t t = 0; t < tokens.num; ++t) {
            std::vector<bool> seen(setup.layout.num_expert(), false);
            for (int64_t k = 0; k < tokens.topk; ++k) {
                const int e = setup.placements[0]
                                  .copy_for(tokens.experts[t * tokens.topk + k], a, t)
                                  .expert_rank;
                ++entries[e];
                if (!seen[e]) ++rows[e];
                seen[e] = true;
            }
        }
        for (int e = 0; e < setup.layout.num_expert(); ++e)
            own[setup.layout.world_rank_of_expert(e)] = static_cast<int>(
                replies
                    ? wire_layout(combine_dtype(setup.options), setup.options.dim, entries[e], 0)
                          .size_bytes()
                    : wire_layout(setup.options.dtype, setup.options.dim, rows[e], entries[e])
                          .size_bytes());
    }
    MPI_Allgather(own.data(), size, MPI_INT, all.data(), size, MPI_INT, world_communicator(world));
    if (!replies) return all;
    std::vector<int> back(all.size());
    for (int from = 0; from < size; ++from)
        for (int to = 0; to < size; ++to) back[to * size + from] = all[from * size + to];
    return back;
}

struct Raw {
    Raw(World& w, const std::vector<int>& bytes)
        : world(w), sends(w.size()), receives(w.size()), from(w.size()), to(w.size()) {
        int send_total = 0;
        int receive_total = 0;
        for (int r = 0; r < w.size(); ++r) {
            sends[r] = bytes[w.rank() * w.size() + r];
            receives[r] = bytes[r * w.size() + w.rank()];
            from[r] = send_total;
            to[r] = receive_total;
            send_total += sends[r];
            receive_total += receives[r];
        }
        out.assign(send_total + 1, 1);
        in.assign(receive_total + 1, 1);
    }
    void run() {
        MPI_Alltoallv(out.data(), sends.data(), from.data(), MPI_BYTE, in.data(), receives.data(),
                      to.data(), MPI_BYTE, world_communicator(world));
    }
    World& world;
    std::vector<int> sends, receives, from, to;
    std::vector<char> out, in;
};

int64_t argument(int argc, char** argv, int i, int64_t fallback) {
    return argc > i ? std::atoll(argv[i]) : fallback;
}

void run(int argc, char** argv) {
    World world(&argc, &argv);
    const int64_t num_tokens = argument(argc, argv, 1, 128);
    const int64_t dim = argument(argc, argv, 2, 7168);
    const int64_t topk = argument(argc, argv, 3, 8);
    const int num_experts = static_cast<int>(argument(argc, argv, 4, 32));
    const int rounds = static_cast<int>(argument(argc, argv, 5, 40));
    ThreadPool threads(static_cast<int>(argument(argc, argv, 6, 1)));
    const char* transport_name = std::getenv("FERRY_TEST_TRANSPORT");
    const char* attention_ranks = std::getenv("FERRY_ATTENTION_RANKS");
    const int a = attention_ranks != nullptr ? std::atoi(attention_ranks) : 0;

    LayoutOptions layout{.mode = LayoutMode::colocated};
    if (a > 0) layout = {.attention_ranks = a, .expert_ranks = world.size() - a, .tp_size = 1};
    ExchangeSetup setup{.options = {.dim = dim,
                                    .topk = topk,
                                    .max_tokens = num_tokens,
                                    .bounded_tokens = num_tokens},
                        .layout = make_layout(layout, world.node_of_rank())};
    setup.placements = {contiguous_placement(num_experts, setup.layout.num_expert())};
    const auto transport =
        make_transport(transport_name != nullptr ? transport_name : "auto", world, nullptr);
    const auto exchange =
        make_exchange(setup, *transport, threads.num_threads() > 1 ? &threads : nullptr);
    const bool attends = exchange->attention() != nullptr;
    const Tokens tokens = make_tokens(static_cast<uint64_t>(world.rank()), attends ? num_tokens : 0,
                                      dim, topk, num_experts, false);
    Raw there(world, message_bytes(world, setup, tokens, false));
    Raw back(world, message_bytes(world, setup, tokens, true));
    std::vector<float> out(tokens.x.size());

    const auto one_exchange = [&] {
        if (!attends) {
            exchange->experts()->reply(decode_rows(*exchange->experts()->receive()));
            return;
        }
        exchange->attention()->dispatch(0, 0, tokens.x_view(), tokens.routing());
        exchange->combine(0, 0, Tensor(out.data(), DType::f32, {tokens.num, dim}),
                          [](const ExpertBatch& batch) { return decode_rows(batch); });
    };
    Times ours, raw;
    for (int round = -5; round < rounds; ++round) {
        const auto timed = [&](Times& times, const auto& work) {
            world.barrier();
            const int64_t begin = trace_now_ns();
            work();
            world.barrier();
            if (round >= 0) times.us.push_back(static_cast<double>(trace_now_ns() - begin) * 1e-3);
            if (round < 0) trace().reset_totals();
        };
        timed(ours, one_exchange);
        timed(raw, [&] {
            there.run();
            back.run();
        });
    }
    const double mib = static_cast<double>(world.all_sum(
                           static_cast<int64_t>(there.out.size() + back.out.size()))) /
                       (1 << 20);
    if (world.rank() == 0) {
        fmt::print("{} ranks ({}A {}E), {} tokens x {} bf16, top-{} of {} experts, {:.1f} MiB\n",
                   world.size(), setup.layout.num_attention(), setup.layout.num_expert(),
                   num_tokens, dim, topk, num_experts, mib);
        fmt::print("            min us   median us  p90 us\n");
        fmt::print("exchange   {:8.0f}  {:8.0f}  {:8.0f}\n", ours.quantile(0), ours.quantile(0.5),
                   ours.quantile(0.9));
        fmt::print("alltoallv  {:8.0f}  {:8.0f}  {:8.0f}\n", raw.quantile(0), raw.quantile(0.5),
                   raw.quantile(0.9));
        fmt::print("ratio      {:8.2f}  {:8.2f}\n", ours.quantile(0) / raw.quantile(0),
                   ours.quantile(0.5) / raw.quantile(0.5));
        for (Zone zone :
             {Zone::pack, Zone::dispatch_wait, Zone::reply, Zone::combine_wait, Zone::combine})
            fmt::print("rank 0 {}: {:.0f} us per exchange\n", to_string(zone),
                       static_cast<double>(trace().totals()[static_cast<size_t>(zone)].time_ns) *
                           1e-3 / rounds);
    }
    if (attends) exchange->attention()->close();
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
    ferry::run(argc, argv);
}
