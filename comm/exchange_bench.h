// Times dispatch and combine over real ranks, for `ferry bench exchange`.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/trace.h"
#include "comm/exchange.h"
#include "comm/world.h"

namespace ferry {

struct ExchangeBenchCase {
    std::string transport = "auto";
    LayoutOptions layout{};
    ExchangeOptions exchange{};  // max_tokens: tokens of every attention rank
    // How often each expert is chosen, relative to the others; its length is the number of experts.
    std::vector<double> popularity{};
    // Instead of choices by popularity: recorded ones, a list [rows, topk] for each of some
    // attention ranks; rank a takes list a modulo their number, each exchange its next rows, over
    // and over. popularity then only says how many experts there are.
    std::vector<std::vector<int32_t>> replay{};
    int num_warmups = 5;
    int num_repetitions = 50;
    uint64_t seed = 1;
};

// What the exchange reports its time in; `pack` is that of packing on an attention rank, and of
// putting rows in order on an expert rank.
constexpr std::array kExchangeZones{Zone::pack, Zone::dispatch_wait, Zone::reply,
                                    Zone::combine_wait, Zone::combine};

struct Spread {
    double min_us = 0, median_us = 0, p99_us = 0;
};

// Of one exchange, from a common start (a barrier) to the last rank. `dispatch`: until every expert
// rank has its rows in order; `both`: until every attention rank has its sums; `combine`: the rest.
// Experts return their rows untouched, so that nothing else is timed.
struct ExchangeBenchResult {
    std::string transport;  // that `auto` chose
    Spread dispatch, combine, both;
    int64_t num_wrong = 0;       // elements that a checked exchange got wrong, over all ranks
    int64_t dispatch_bytes = 0;  // over all ranks, of one exchange; also to oneself
    int64_t combine_bytes = 0;
    double algorithm_gb_per_s = 0;  // both ways, per attention rank
    double bus_gb_per_s = 0;        // the part of it that left its rank
    // Until the last row was seen in the memory of its expert rank, on its way through no hands but
    // the transport's: packed and moved, not yet put in order.
    Spread arrived;
    // stage_us[world rank][i]: spent in kExchangeZones[i], on average.
    std::vector<std::vector<double>> stage_us;
    // wait_us[expert rank][attention rank]: how much later than the first its rows came, on
    // average.
    std::vector<std::vector<double>> wait_us;
};

// Collective; the result is the same on every rank. Throws as make_layout, make_transport and
// make_exchange do.
ExchangeBenchResult bench_exchange(World& world, const ExchangeBenchCase& bench_case);

// Relative frequencies of `num_experts` experts. uniform: all the same; power: expert e as
// (e + 1)^-exponent; hot: every token chooses expert 0.
std::vector<double> uniform_popularity(int num_experts);
std::vector<double> power_popularity(int num_experts, double exponent);
std::vector<double> hot_popularity(int num_experts);

}  // namespace ferry
