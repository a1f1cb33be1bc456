#include "runtime/run_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/error.h"
#include "runtime/trace_json.h"

namespace ferry {
namespace {

constexpr size_t kMaxEvents = size_t{1} << 19;  // of a rank: 20 MiB
constexpr size_t kMaxGpuZones = size_t{1} << 16;

struct Totals {
    int64_t wall_ns;
    int64_t dropped_events;
    std::array<ZoneTotals, kNumZones> zones;
};

double milliseconds(int64_t ns) {
    return static_cast<double>(ns) * 1e-6;
}

std::string role_of(const Layout& layout, int rank) {
    if (layout.mode() == LayoutMode::colocated) return "colocated";
    return layout.attention_rank(rank) >= 0 ? "attention" : "expert";
}

void append_to(const std::string& path, const char* mode, const std::string& text) {
    std::FILE* file = std::fopen(path.c_str(), mode);
    const bool written =
        file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const bool closed = file != nullptr && std::fclose(file) == 0;
    if (!written || !closed)
        throw Error(ErrorKind::input, "log.trace: {} cannot be written: {}", path,
                    std::strerror(errno));
}

// What every rank recorded from begin to end.
WholeExchanges whole_on_all_ranks(World& world, const RankTrace& own) {
    // Where a rank's events ran full, later marks would point at no span.
    const bool full = trace().dropped_events() > 0;
    const int64_t end_ns = full ? own.events.back().end_ns : INT64_MAX;
    WholeExchanges whole = whole_exchanges(own.marks, own.attention_rank >= 0, own.expert_rank >= 0,
                                           own.begin_ns, end_ns);
    for (size_t m = 0; m < whole.first.size(); ++m) {
        whole.first[m] = world.all_max(whole.first[m]);
        whole.last[m] = -world.all_max(-whole.last[m]);
    }
    return whole;
}

struct Column {
    double mean_ms = 0, max_ms = 0;
    int64_t bytes = 0;
};

// Of the ranks that have a role: one zone, or what is left of the whole time (idle).
Column column(const std::vector<Totals>& ranks, Zone zone) {
    Column result;
    for (const Totals& rank : ranks) {
        const ZoneTotals& totals = rank.zones[static_cast<size_t>(zone)];
        int64_t ns = totals.self_ns;
        if (zone == Zone::idle) {
            ns = rank.wall_ns;
            for (int z = 0; z < kNumZones; ++z)
                if (static_cast<Zone>(z) != Zone::idle)
                    ns -= rank.zones[static_cast<size_t>(z)].self_ns;
        }
        result.mean_ms += milliseconds(ns) / static_cast<double>(ranks.size());
        result.max_ms = std::max(result.max_ms, milliseconds(ns));
        result.bytes += totals.bytes;
    }
    return result;
}

}  // namespace

RunTrace::RunTrace(World& world, bool record, Device* device) : records_(record) {
    if (record) {
        trace().record_events(kMaxEvents);
        trace_marks().record(kMaxEvents / 2);
        begin_offset_ = measure_clock_offset(world, trace_now_ns);
        if (auto* gpu = dynamic_cast<CudaDevice*>(device))
            gpu_ = std::make_unique<GpuTimeline>(*gpu, kMaxGpuZones);
    }
    world.barrier();
    trace().reset_totals();
    begin_ns_ = end_ns_ = trace_now_ns();
}

void RunTrace::finish() {
    end_ns_ = trace_now_ns();
    if (gpu_) gpu_events_ = gpu_->events();
    gpu_.reset();
}

RunTrace::~RunTrace() {
    if (!records_) return;
    trace().record_events(0);
    trace_marks().record(0);
}

void RunTrace::write(World& world, const Layout& layout, const std::string& path) const {
    const ClockMap clock(begin_offset_, measure_clock_offset(world, trace_now_ns));
    // Zero is when the first rank began.
    const int64_t zero_ns = -world.all_max(-clock.to_rank_0(begin_ns_));
    const int rank = world.rank();
    RankTrace own{
        .rank = rank,
        .name = fmt::format("rank {} ({}) on {}", rank, role_of(layout, rank), world.host()),
        .attention_rank = layout.attention_rank(rank),
        .expert_rank = layout.expert_rank(rank),
        .num_attention = layout.num_attention(),
        .num_expert = layout.num_expert(),
        .events = trace().events(),
        .gpu_events = gpu_events_,
        .marks = trace_marks().marks(),
        .samples = trace_marks().samples(),
        .begin_ns = begin_ns_,
        .whole = {},
        .to_us = [&](int64_t ns) {
            return static_cast<double>(clock.to_rank_0(ns) - zero_ns) * 1e-3;
        }};
    own.whole = whole_on_all_ranks(world, own);
    const std::vector<std::string> clocks = world.all_gather(fmt::format(
        R"({{"rank":{},"host":"{}","clock_drift_ppm":{:.3f},"clock_error_us":{:.3f},"dropped_events":{}}})",
        rank, world.host(), clock.drift() * 1e6, static_cast<double>(clock.error_ns()) * 1e-3,
        trace().dropped_events()));
    for (int writer = 0; writer < world.size(); ++writer) {
        world.barrier();
        if (writer != rank) continue;
        std::string text =
            rank == 0 ? fmt::format(R"({{"displayTimeUnit":"ms","otherData":{{"ranks":[{}]}},)"
                                    "\n\"traceEvents\":[\n",
                                    fmt::join(clocks, ",\n"))
                      : ",\n";
        text += trace_events_json(own);
        if (rank == world.size() - 1) text += "\n]}\n";
        append_to(path, rank == 0 ? "w" : "a", text);
    }
    world.barrier();
}

std::string RunTrace::phase_table(World& world, const Layout& layout) const {
    const Totals own{.wall_ns = end_ns_ - begin_ns_,
                     .dropped_events = trace().dropped_events(),
                     .zones = trace().totals()};
    const std::vector<std::string> all =
        world.all_gather(std::string(reinterpret_cast<const char*>(&own), sizeof own));
    std::vector<Totals> attention, experts;
    int64_t dropped_events = 0;
    for (int rank = 0; rank < world.size(); ++rank) {
        Totals totals;
        std::memcpy(&totals, all[static_cast<size_t>(rank)].data(), sizeof totals);
        (layout.attention_rank(rank) >= 0 ? attention : experts).push_back(totals);
        dropped_events += totals.dropped_events;
    }
    std::string text = fmt::format(
        "{:.1f} ms on {} ranks; milliseconds of a rank, on average and at most\n"
        "{:<16} {:>21} {:>21} {:>12}\n",
        milliseconds(own.wall_ns), world.size(), "zone",
        experts.empty() ? "all ranks" : "attention ranks", experts.empty() ? "" : "expert ranks",
        "MB");
    for (int z = 0; z < kNumZones; ++z) {
        const Zone zone = static_cast<Zone>(z);
        const Column left = column(attention, zone), right = column(experts, zone);
        if (left.max_ms == 0 && right.max_ms == 0) continue;
        text +=
            fmt::format("{:<16} {:>10.1f} {:>10.1f} ", to_string(zone), left.mean_ms, left.max_ms);
        text += experts.empty() ? fmt::format("{:>21}", "")
                                : fmt::format("{:>10.1f} {:>10.1f}", right.mean_ms, right.max_ms);
        text += fmt::format(" {:>12.1f}\n", static_cast<double>(left.bytes + right.bytes) * 1e-6);
    }
    text += "times are without the zones inside; idle is what no zone holds";
    if (dropped_events > 0)
        text += fmt::format("\n{} events did not fit the trace, which ends early", dropped_events);
    return text;
}

std::string trace_path_of(const std::string& path, const std::string& name) {
    std::string words;
    for (const char c : name) {
        const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '_';
        if (plain)
            words += c;
        else if (!words.empty() && words.back() != '-')
            words += '-';
    }
    const std::filesystem::path file(path);
    return (file.parent_path() / (file.stem().string() + "-" + words)).string() +
           file.extension().string();
}

}  // namespace ferry
