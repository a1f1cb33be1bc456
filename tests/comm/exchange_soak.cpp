// Exchanges of random sizes, modes, dtypes and routings for a while, every answer compared bit for
// bit, and memory that must stay flat.
//   mpirun -n 4 exchange_soak [SECONDS]       FERRY_TEST_TRANSPORT chooses the transport
#include <fmt/core.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "base/error.h"
#include "base/random.h"
#include "base/trace.h"
#include "comm/exchange.h"
#include "comm/world.h"

namespace ferry {
namespace {

constexpr int64_t kDim = 384, kTopk = 4, kMaxTokens = 300;
constexpr int kExperts = 13, kLayers = 61;

int64_t resident_kib() {
    long pages = 0, resident = 0;
    std::FILE* file = std::fopen("/proc/self/statm", "r");
    if (file == nullptr || std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
    if (file != nullptr) std::fclose(file);
    return int64_t{resident} * 4;
}

// Small integers: exact in bf16, and so are their sums.
void fill(Random& random, int64_t num, std::vector<float>& x, std::vector<int32_t>& experts) {
    for (int64_t i = 0; i < num * kDim; ++i)
        x[static_cast<size_t>(i)] = static_cast<float>(random.next_u32() % 9) - 4.0f;
    const bool hot = random.next_u32() % 4 == 0;
    for (int64_t t = 0; t < num; ++t) {
        const uint32_t first = hot ? 0 : random.next_u32() % kExperts;
        for (int64_t k = 0; k < kTopk; ++k)
            experts[static_cast<size_t>(t * kTopk + k)] =
                static_cast<int32_t>((first + 3 * static_cast<uint32_t>(k)) % kExperts);
    }
}

// One rank of a 1:1, or half and half, exchange.
class Soak {
  public:
    Soak(World& world, Transport& transport, ExchangeMode mode, DType dtype)
        : random_(17 + static_cast<uint64_t>(world.rank())) {
        const LayoutOptions layout =
            world.size() == 1 ? LayoutOptions{.mode = LayoutMode::colocated}
                              : LayoutOptions{.attention_ranks = world.size() / 2,
                                              .expert_ranks = world.size() - world.size() / 2,
                                              .tp_size = 1};
        ExchangeSetup setup{.options = {.dim = kDim,
                                        .topk = kTopk,
                                        .max_tokens = kMaxTokens,
                                        .dtype = dtype,
                                        .mode = mode},
                            .layout = make_layout(layout, world.node_of_rank())};
        setup.num_layers = kLayers;
        setup.placements = {contiguous_placement(kExperts, setup.layout.num_expert())};
        exchange_ = make_exchange(setup, transport, nullptr);
        x_.resize(kMaxTokens * kDim);
        out_.resize(x_.size());
        experts_.resize(kMaxTokens * kTopk);
        weights_.assign(experts_.size(), 1.0f);
    }

    // Elements that came back wrong.
    int64_t round(int64_t number) {
        // Rarely large, often small, sometimes none; ranks differ.
        const uint32_t kind = random_.next_u32() % 8;
        const int64_t num = kind == 0 ? 0 : random_.next_u32() % (kind < 6 ? 20 : kMaxTokens + 1);
        fill(random_, num, x_, experts_);
        if (exchange_->attention() == nullptr) {
            exchange_->experts()->reply(decode_rows(*exchange_->experts()->receive()));
            return 0;
        }
        const int layer = static_cast<int>(number % kLayers);
        exchange_->attention()->dispatch(layer, 0, Tensor(x_.data(), DType::f32, {num, kDim}),
                                         {Tensor(experts_.data(), DType::i32, {num, kTopk}),
                                          Tensor(weights_.data(), DType::f32, {num, kTopk})});
        exchange_->combine(layer, 0, Tensor(out_.data(), DType::f32, {num, kDim}),
                           [](const ExpertBatch& batch) { return decode_rows(batch); });
        int64_t wrong = 0;
        for (int64_t i = 0; i < num * kDim; ++i)
            wrong += out_[static_cast<size_t>(i)] ==
                             static_cast<float>(kTopk) * x_[static_cast<size_t>(i)]
                         ? 0
                         : 1;
        return wrong;
    }
    void close() {
        if (exchange_->attention() != nullptr) exchange_->attention()->close();
        if (exchange_->experts() != nullptr)
            while (exchange_->experts()->receive() != nullptr) {
            }
    }

  private:
    Random random_;
    std::unique_ptr<Exchange> exchange_;
    std::vector<float> x_, out_, weights_;
    std::vector<int32_t> experts_;
};

int run(int argc, char** argv) {
    World world(&argc, &argv);
    const double seconds = argc > 1 ? std::atof(argv[1]) : 5;
    const char* name = std::getenv("FERRY_TEST_TRANSPORT");
    const auto since = [begin = trace_now_ns()] {
        return static_cast<double>(trace_now_ns() - begin) * 1e-9;
    };
    int64_t rounds = 0, wrong = 0, warm_kib = 0, most_kib = 0;
    double next_line_s = 0;
    // Transports and exchanges are made anew all the time too.
    for (int64_t life = 0;; ++life) {
        const auto transport = make_transport(name != nullptr ? name : "auto", world, nullptr);
        Soak soak(world, *transport, static_cast<ExchangeMode>(life % 3),
                  life % 2 == 0 ? DType::bf16 : DType::f32);
        for (int64_t i = 0; i < 200; ++i, ++rounds) wrong += soak.round(rounds);
        soak.close();
        const double now = since();
        if (life < 3 || now < seconds * 0.2) warm_kib = std::max(warm_kib, resident_kib());
        most_kib = std::max(most_kib, resident_kib());
        const int64_t now_kib = world.all_max(resident_kib());
        if (world.rank() == 0 && now >= next_line_s) {
            fmt::print("after {:.0f} s: {} exchanges over {}, largest rank {} KiB\n", now, rounds,
                       transport->name(), now_kib);
            std::fflush(stdout);
            next_line_s = now + 60;
        }
        if (world.all_max(life >= 6 && now > seconds ? 1 : 0) > 0) break;
    }
    wrong = world.all_sum(wrong);
    const int64_t grown = world.all_max(most_kib - warm_kib);
    const int64_t most = world.all_max(most_kib);
    if (world.rank() == 0)
        fmt::print(
            "{} ranks, {} exchanges in {:.0f} s: {} elements wrong; memory of the largest "
            "rank {} KiB, grown by {} KiB after the first fifth\n",
            world.size(), rounds, since(), wrong, most, grown);
    constexpr int64_t kFlatKib = 8192;
    return wrong == 0 && grown <= kFlatKib ? 0 : 1;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
    return ferry::run(argc, argv);
}
