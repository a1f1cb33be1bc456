#include "comm/exchange_bench.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "base/error.h"
#include "base/median.h"
#include "base/random.h"
#include "base/trace.h"

namespace ferry {
namespace {

constexpr double kHot = 1e30;

// Small integers, and 448 at the start of every 128 values, so that fp8 scales are 1: rows, their
// multiples by up to 4 and sums of these are exact in every dtype.
std::vector<float> exact_rows(Random& random, int64_t num, int64_t dim) {
    std::vector<float> x(static_cast<size_t>(num * dim));
    for (int64_t i = 0; i < num * dim; ++i)
        x[i] = i % dim % 128 == 0 ? 448.0f : static_cast<float>(random.next_u32() % 17) - 8.0f;
    return x;
}

float factor(int expert) {
    return static_cast<float>(1 + expert % 4);
}

// topk distinct experts by popularity: the largest of log(p) + Gumbel noise.
void choose(Random& random, const std::vector<double>& popularity, int64_t topk, int32_t* chosen) {
    std::vector<std::pair<double, int32_t>> keys;
    for (size_t e = 0; e < popularity.size(); ++e) {
        const double uniform = (random.next_u32() + 0.5) / 4294967296.0;
        keys.push_back(
            {std::log(popularity[e]) - std::log(-std::log(uniform)), static_cast<int32_t>(e)});
    }
    std::partial_sort(keys.begin(), keys.begin() + topk, keys.end(), std::greater<>());
    for (int64_t k = 0; k < topk; ++k) chosen[k] = keys[k].second;
}

Spread spread_of(std::vector<double> us) {
    std::sort(us.begin(), us.end());
    const auto at = [&](double q) {
        return us[static_cast<size_t>(std::ceil(q * static_cast<double>(us.size()))) - 1];
    };
    return {us.front(), median(us), at(0.99)};
}

class Bench {
  public:
    Bench(World& world, const ExchangeBenchCase& bench_case) : world_(world), case_(bench_case) {
        setup_.options = bench_case.exchange;
        setup_.layout = make_layout(bench_case.layout, world.node_of_rank());
        setup_.placements = {contiguous_placement(static_cast<int>(bench_case.popularity.size()),
                                                  setup_.layout.num_expert())};
        if (setup_.options.topk > static_cast<int64_t>(bench_case.popularity.size()))
            throw Error(ErrorKind::usage, "top-{} of {} experts", setup_.options.topk,
                        bench_case.popularity.size());
        transport_ = make_transport(bench_case.transport, world, nullptr);
        // Replies that are still on their way while this rank meets the others.
        world.while_waiting([this] { return transport_->progress(); });
        exchange_ = make_exchange(setup_, *transport_, nullptr);
        if (exchange_->attention() == nullptr) return;
        num_ = setup_.options.max_tokens;
        Random random(bench_case.seed * 1000 + static_cast<uint64_t>(world.rank()));
        x_ = exact_rows(random, num_, setup_.options.dim);
        experts_.resize(static_cast<size_t>(num_ * setup_.options.topk));
        weights_.assign(experts_.size(), 1.0f);
        if (!bench_case.replay.empty()) {
            replay_ = &case_.replay[static_cast<size_t>(setup_.layout.attention_rank(world.rank()) %
                                                        static_cast<int>(case_.replay.size()))];
            FERRY_CHECK(!replay_->empty() &&
                            static_cast<int64_t>(replay_->size()) % setup_.options.topk == 0,
                        "{} recorded choices by top-{}", replay_->size(), setup_.options.topk);
        }
        for (int64_t t = 0; t < num_ && replay_ == nullptr; ++t)
            choose(random, bench_case.popularity, setup_.options.topk,
                   experts_.data() + t * setup_.options.topk);
        out_.resize(x_.size());
        input_.resize(x_.size());
    }

    ~Bench() { world_.while_waiting(nullptr); }
    Bench(const Bench&) = delete;
    Bench& operator=(const Bench&) = delete;

    ExchangeBenchResult run() {
        ExchangeBenchResult result;
        result.transport = transport_->name();
        checking_ = true;
        round();
        result.num_wrong = world_.all_sum(count_wrong());
        checking_ = false;
        for (int i = 0; i < case_.num_warmups; ++i) round();
        lateness_.assign(setup_.layout.num_attention(), 0);
        const auto before = trace().totals();
        std::vector<double> arrived_us, dispatch_us, both_us;
        for (int i = 0; i < case_.num_repetitions; ++i) {
            round();
            arrived_us.push_back(arrived_us_);
            dispatch_us.push_back(dispatch_us_);
            both_us.push_back(both_us_);
        }
        const auto after = trace().totals();
        if (exchange_->attention() != nullptr) exchange_->attention()->close();
        if (exchange_->experts() != nullptr)
            while (exchange_->experts()->receive() != nullptr) {
            }

        const int rounds = case_.num_repetitions;
        const auto bytes = [&](Zone zone) {
            const auto i = static_cast<size_t>(zone);
            return world_.all_sum(after[i].bytes - before[i].bytes) / rounds;
        };
        result.dispatch_bytes = bytes(Zone::pack);
        result.combine_bytes = bytes(Zone::reply);
        std::vector<double> stage_us;
        for (const Zone zone : kExchangeZones) {
            const auto i = static_cast<size_t>(zone);
            stage_us.push_back(static_cast<double>(after[i].self_ns - before[i].self_ns) * 1e-3 /
                               rounds);
        }
        result.stage_us = gather(stage_us);
        result.arrived = spread_of(slowest(arrived_us));
        dispatch_us = slowest(dispatch_us);
        both_us = slowest(both_us);
        std::vector<double> combine_us(both_us);
        for (int i = 0; i < rounds; ++i)  // of different rounds: noise may be longer than both
            combine_us[i] = std::max(0.0, combine_us[i] - dispatch_us[i]);
        result.dispatch = spread_of(dispatch_us);
        result.combine = spread_of(combine_us);
        result.both = spread_of(both_us);
        result.algorithm_gb_per_s =
            static_cast<double>(result.dispatch_bytes + result.combine_bytes) /
            setup_.layout.num_attention() / (result.both.median_us * 1e3);
        const double ranks = setup_.layout.num_expert();
        result.bus_gb_per_s =
            result.algorithm_gb_per_s *
            (setup_.layout.mode() == LayoutMode::colocated ? (ranks - 1) / ranks : 1.0);
        for (double& late : lateness_) late /= rounds;
        const std::vector<std::vector<double>> all = gather(lateness_);
        for (int e = 0; e < setup_.layout.num_expert(); ++e)
            result.wait_us.push_back(all[setup_.layout.world_rank_of_expert(e)]);
        return result;
    }

  private:
    static double us_since(int64_t begin_ns) {
        return static_cast<double>(trace_now_ns() - begin_ns) * 1e-3;
    }

    void take_recorded() {
        for (int32_t& expert : experts_) {
            expert = (*replay_)[next_recorded_];
            next_recorded_ = (next_recorded_ + 1) % replay_->size();
        }
    }

    void round() {
        if (replay_ != nullptr) take_recorded();
        // As in a model, whose norm has just written the rows.
        std::copy(x_.begin(), x_.end(), input_.begin());
        world_.barrier();
        begin_ns_ = trace_now_ns();
        arrived_us_ = dispatch_us_ = both_us_ = 0;
        if (exchange_->attention() == nullptr) {
            const ExpertBatch* batch = exchange_->experts()->receive();
            exchange_->experts()->reply(serve(*batch));
            return;
        }
        const int64_t dim = setup_.options.dim;
        const int64_t topk = setup_.options.topk;
        exchange_->attention()->dispatch(0, 0, Tensor(input_.data(), DType::f32, {num_, dim}),
                                         {Tensor(experts_.data(), DType::i32, {num_, topk}),
                                          Tensor(weights_.data(), DType::f32, {num_, topk})});
        exchange_->combine(0, 0, Tensor(out_.data(), DType::f32, {num_, dim}),
                           [this](const ExpertBatch& batch) { return serve(batch); });
        both_us_ = us_since(begin_ns_);
    }

    const Tensor& serve(const ExpertBatch& batch) {
        dispatch_us_ = us_since(begin_ns_);
        const int64_t last = *std::max_element(batch.arrived_ns.begin(), batch.arrived_ns.end());
        arrived_us_ = static_cast<double>(last - begin_ns_) * 1e-3;
        if (!lateness_.empty()) {
            const int64_t first =
                *std::min_element(batch.arrived_ns.begin(), batch.arrived_ns.end());
            for (size_t a = 0; a < lateness_.size(); ++a)
                lateness_[a] += static_cast<double>(batch.arrived_ns[a] - first) * 1e-3;
        }
        // What experts compute is not the exchange's: outputs are what an earlier round left there,
        // unless (in a replay) no round had so many.
        if (!checking_ && batch.rows.rows() <= most_rows_) return batch.rows;
        most_rows_ = batch.rows.rows();
        decode_rows(batch);
        if (!checking_) return batch.rows;
        const std::span<const int> experts =
            setup_.placements[0].experts(setup_.layout.expert_rank(world_.rank()));
        for (size_t slot = 0; slot + 1 < batch.offsets.size(); ++slot)
            for (int64_t row = batch.offsets[slot]; row < batch.offsets[slot + 1]; ++row)
                for (int64_t i = 0; i < setup_.options.dim; ++i)
                    batch.rows.row<float>(row)[i] *= factor(experts[slot]);
        return batch.rows;
    }

    int64_t count_wrong() const {
        const int64_t dim = setup_.options.dim;
        const int64_t topk = setup_.options.topk;
        int64_t wrong = 0;
        for (int64_t t = 0; t < num_; ++t) {
            float sum = 0;
            for (int64_t k = 0; k < topk; ++k) sum += factor(experts_[t * topk + k]);
            for (int64_t i = t * dim; i < (t + 1) * dim; ++i)
                wrong += out_[i] == sum * x_[i] ? 0 : 1;
        }
        return wrong;
    }

    // Every rank's numbers, by rank.
    std::vector<std::vector<double>> gather(const std::vector<double>& own) {
        std::vector<std::vector<double>> all;
        for (const std::string& text : world_.all_gather(std::string(
                 reinterpret_cast<const char*>(own.data()), own.size() * sizeof(double)))) {
            all.emplace_back(text.size() / sizeof(double));
            std::memcpy(all.back().data(), text.data(), text.size());
        }
        return all;
    }
    std::vector<double> slowest(const std::vector<double>& own) {
        std::vector<double> most(own.size(), 0.0);
        for (const std::vector<double>& each : gather(own))
            for (size_t i = 0; i < most.size(); ++i) most[i] = std::max(most[i], each[i]);
        return most;
    }

    World& world_;
    ExchangeBenchCase case_;
    ExchangeSetup setup_;
    std::unique_ptr<Transport> transport_;
    std::unique_ptr<Exchange> exchange_;
    int64_t num_ = 0;
    std::vector<float> x_, weights_, input_, out_;
    std::vector<int32_t> experts_;
    const std::vector<int32_t>* replay_ = nullptr;
    size_t next_recorded_ = 0;
    bool checking_ = false;
    int64_t most_rows_ = 0;  // that experts have given back
    int64_t begin_ns_ = 0;
    double arrived_us_ = 0, dispatch_us_ = 0, both_us_ = 0;  // of the last round; 0: another's role
    std::vector<double> lateness_;  // by attention rank; empty while warming up
};

}  // namespace

ExchangeBenchResult bench_exchange(World& world, const ExchangeBenchCase& bench_case) {
    return Bench(world, bench_case).run();
}

std::vector<double> uniform_popularity(int num_experts) {
    return std::vector<double>(num_experts, 1.0);
}
std::vector<double> power_popularity(int num_experts, double exponent) {
    std::vector<double> popularity;
    for (int e = 0; e < num_experts; ++e) popularity.push_back(std::pow(e + 1.0, -exponent));
    return popularity;
}
std::vector<double> hot_popularity(int num_experts) {
    std::vector<double> popularity(num_experts, 1.0);
    popularity[0] = kHot;
    return popularity;
}

}  // namespace ferry
