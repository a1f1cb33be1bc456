#include "launch/status_file.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "launch/progress.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;

constexpr auto kInterval = std::chrono::seconds(1);
constexpr double kStaleS = 10;
constexpr size_t kBarWidth = 20;

// Waiting for other ranks, or for requests.
bool is_wait(Zone zone) {
    return zone == Zone::dispatch_wait || zone == Zone::combine_wait || zone == Zone::idle;
}

double unix_time_s() {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Totals may have begun anew in between.
int64_t grown(int64_t before, int64_t now) {
    return now >= before ? now - before : now;
}

Json parse(const std::string& text, const std::string& where) {
    Json json = Json::parse(text, nullptr, false);
    if (!json.is_object() || !json.contains("requests") || !json.contains("state"))
        throw Error(ErrorKind::input, "{}: is no status file of a job", where);
    return json;
}

std::string bar(double share, size_t width) {
    const auto filled =
        static_cast<size_t>(std::clamp(share, 0.0, 1.0) * static_cast<double>(width) + 0.5);
    return std::string(filled, '#') + std::string(width - filled, '.');
}

double share_of(int64_t part, int64_t whole) {
    return static_cast<double>(part) / static_cast<double>(std::max<int64_t>(whole, 1));
}

// How busy each of a few ranks is, four in a line of 80 columns.
std::string busy_lines(const std::vector<double>& shares) {
    constexpr size_t kInLine = 4, kMostRanks = 32;
    std::string lines;
    if (shares.size() < 2 || shares.size() > kMostRanks) return lines;
    for (size_t rank = 0; rank < shares.size(); ++rank) {
        if (rank % kInLine == 0) lines += rank == 0 ? "busy      " : "\n          ";
        lines += fmt::format("{:>2} [{}]{:>3.0f} %{}", rank, bar(shares[rank], 6),
                             shares[rank] * 100, rank % kInLine + 1 < kInLine ? "  " : "");
    }
    lines.erase(lines.find_last_not_of(' ') + 1);
    return lines + "\n";
}

// The longest first; what rounds to nothing is left out.
std::string phase_lines(const Json& phases) {
    constexpr double kLeastShare = 0.005;
    std::vector<std::pair<double, std::string>> order;
    for (const auto& [name, share] : phases.items())
        if (share.get<double>() >= kLeastShare) order.emplace_back(share.get<double>(), name);
    std::sort(order.begin(), order.end(), std::greater<>());
    std::string lines = order.empty() ? "" : "phases    of all ranks' time\n";
    for (const auto& [share, name] : order)
        lines +=
            fmt::format("  {:<16} [{}] {:>3.0f} %\n", name, bar(share, kBarWidth), share * 100);
    return lines;
}

}  // namespace

int64_t JobSnapshot::sum(Tally tally) const {
    int64_t total = 0;
    for (const RankStatus& rank : ranks) total += rank.tallies[static_cast<size_t>(tally)];
    return total;
}

JobRates rates_between(const JobSnapshot& before, const JobSnapshot& now) {
    JobRates rates;
    const double seconds = now.time_s - before.time_s;
    rates.phase_shares.assign(kNumZones, 0.0);
    rates.busy_shares.assign(now.ranks.size(), 0.0);
    if (seconds <= 0 || before.ranks.size() != now.ranks.size()) return rates;
    rates.tokens_per_s =
        static_cast<double>(grown(before.sum(Tally::tokens), now.sum(Tally::tokens))) / seconds;
    bool any_wait = false;
    for (size_t rank = 0; rank < now.ranks.size(); ++rank) {
        double total_s = 0, wait_s = 0;
        for (size_t z = 0; z < kNumZones; ++z) {
            const double zone_s = static_cast<double>(grown(before.ranks[rank].zone_ns[z],
                                                            now.ranks[rank].zone_ns[z])) *
                                  1e-9;
            total_s += zone_s;
            rates.phase_shares[z] += zone_s / seconds / static_cast<double>(now.ranks.size());
            if (is_wait(static_cast<Zone>(z))) wait_s += zone_s;
        }
        if (total_s > 0) rates.busy_shares[rank] = 1 - wait_s / total_s;
        any_wait |= wait_s > 0;
    }
    for (size_t z = 0; z < kNumZones; ++z) {
        if (is_wait(static_cast<Zone>(z)) || rates.phase_shares[z] <= 0) continue;
        if (rates.slowest_phase < 0 ||
            rates.phase_shares[z] > rates.phase_shares[static_cast<size_t>(rates.slowest_phase)])
            rates.slowest_phase = static_cast<int>(z);
    }
    if (now.ranks.size() > 1 && any_wait)
        rates.slowest_rank =
            static_cast<int>(std::max_element(rates.busy_shares.begin(), rates.busy_shares.end()) -
                             rates.busy_shares.begin());
    return rates;
}

std::string_view to_string(JobState state) {
    switch (state) {
        case JobState::loading:
            return "loading";
        case JobState::running:
            return "running";
        case JobState::finished:
            return "finished";
        case JobState::stopped:
            return "stopped";
    }
    return "?";
}

std::string status_json(const JobDescription& job, JobState state, const JobSnapshot& now,
                        const JobRates& rates, double elapsed_s) {
    // Unfinished requests are running or waiting.
    const int64_t waiting = now.sum(Tally::waiting);
    const int64_t done = job.num_done_before + now.sum(Tally::done);
    // Lines of the input may ask for more samples than the configuration, from which the total is.
    const int64_t total = job.num_requests > 0 ? std::max(job.num_requests, done) : 0;
    Json json{{"format", 1},
              {"state", to_string(state)},
              {"command", job.command},
              {"model", job.model},
              {"layout", job.layout},
              {"ranks", job.ranks.size()},
              {"updated_unix_s", unix_time_s()},
              {"elapsed_s", elapsed_s}};
    json["requests"] = {{"total", total},
                        {"done", done},
                        {"failed", now.sum(Tally::failed)},
                        {"running", now.sum(Tally::running) - waiting},
                        {"waiting", waiting}};
    json["tokens"] = {{"generated", now.sum(Tally::tokens)}, {"per_s", rates.tokens_per_s}};
    json["cache"] = {{"pages", now.sum(Tally::cache_pages)},
                     {"used", now.sum(Tally::cache_pages_used)}};
    json["loaded_bytes"] = now.sum(Tally::loaded_bytes);
    json["phases"] = Json::object();
    for (size_t z = 0; z < rates.phase_shares.size(); ++z)
        if (rates.phase_shares[z] > 0)
            json["phases"][std::string(to_string(static_cast<Zone>(z)))] = rates.phase_shares[z];
    json["slowest_phase"] = nullptr;
    if (rates.slowest_phase >= 0)
        json["slowest_phase"] = {
            {"name", to_string(static_cast<Zone>(rates.slowest_phase))},
            {"share", rates.phase_shares[static_cast<size_t>(rates.slowest_phase)]}};
    json["slowest_rank"] = nullptr;
    if (rates.slowest_rank >= 0) {
        const auto rank = static_cast<size_t>(rates.slowest_rank);
        json["slowest_rank"] = {{"rank", rank},
                                {"host", job.ranks.at(rank).host},
                                {"role", job.ranks.at(rank).role},
                                {"busy_share", rates.busy_shares[rank]}};
    }
    json["busy_shares"] = rates.busy_shares;
    return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string layout_text(const Layout& layout) {
    std::string text =
        layout.mode() == LayoutMode::colocated
            ? fmt::format("{} colocated", layout.num_ranks())
            : fmt::format("{} attention + {} expert", layout.num_attention(), layout.num_expert());
    text += layout.num_ranks() == 1 ? " rank" : " ranks";
    if (layout.tp_size() > 1) text += fmt::format(", TP {}", layout.tp_size());
    return text;
}

std::vector<JobDescription::Rank> describe_ranks(const Layout& layout, const World& world) {
    std::vector<JobDescription::Rank> ranks;
    for (int rank = 0; rank < world.size(); ++rank)
        ranks.push_back({world.host(rank), layout.mode() == LayoutMode::colocated ? "colocated"
                                           : layout.attention_rank(rank) >= 0     ? "attention"
                                                                                  : "expert"});
    return ranks;
}

JobSnapshot take_snapshot(int num_ranks, const Watchdog* watchdog) {
    JobSnapshot snapshot;
    for (int rank = 0; rank < num_ranks; ++rank)
        snapshot.ranks.push_back(watchdog != nullptr ? watchdog->status_of(rank)
                                                     : progress_state().status());
    return snapshot;
}

JobSnapshot gather_snapshot(World& world) {
    const RankStatus own = progress_state().status();
    JobSnapshot snapshot;
    for (const std::string& bytes :
         world.all_gather(std::string(reinterpret_cast<const char*>(&own), sizeof own)))
        std::memcpy(&snapshot.ranks.emplace_back(), bytes.data(), sizeof own);
    return snapshot;
}

void note_engine(const Engine& engine, ProgressState& state) {
    state.set(Tally::running, engine.num_unfinished());
    state.set(Tally::waiting, engine.num_waiting());
    state.set(Tally::tokens, engine.num_generated_tokens());
    state.set(Tally::cache_pages, engine.pages().num_pages());
    state.set(Tally::cache_pages_used, engine.pages().num_held());
}

StatusFile::StatusFile(std::string dir, JobDescription job, Take take)
    : dir_(std::move(dir)), job_(std::move(job)), take_(std::move(take)) {
    if (!dir_.empty()) write();
}

void StatusFile::update() {
    if (dir_.empty() || Clock::now() - last_write_ < kInterval) return;
    state_ = JobState::running;
    write();
}

void StatusFile::finish(JobState state) {
    state_ = state;
    if (!dir_.empty()) write();
    dir_.clear();
}

StatusFile::~StatusFile() {
    finish(JobState::stopped);
}

// A status that cannot be written is no reason to end a job.
void StatusFile::write() {
    last_write_ = Clock::now();
    JobSnapshot now = take_();
    now.time_s = std::chrono::duration<double>(last_write_ - start_).count();
    if (state_ == JobState::running || before_.ranks.empty()) rates_ = rates_between(before_, now);
    const std::string text = status_json(job_, state_, now, rates_, now.time_s);
    before_ = std::move(now);
    const std::string path = dir_ + "/" + kStatusFileName, temporary = path + ".new";
    std::FILE* file = std::fopen(temporary.c_str(), "w");
    const bool written =
        file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const bool closed = file != nullptr && std::fclose(file) == 0;
    if (written && closed && std::rename(temporary.c_str(), path.c_str()) == 0) return;
    if (!std::exchange(failed_, true)) log_warn("{} cannot be written", path);
}

bool has_ended(const std::string& json) {
    const Json parsed = parse(json, kStatusFileName);
    const std::string state = parsed.value("state", "");
    return state == "finished" || state == "stopped";
}

std::string status_text(const std::string& text, const std::string& where, double age_s) {
    const Json json = parse(text, where);
    try {
        const Json &requests = json.at("requests"), &tokens = json.at("tokens"),
                   &cache = json.at("cache");
        const std::string state = json.at("state");
        const bool ended = state == "finished" || state == "stopped";
        std::string out =
            fmt::format("ferry {}: {} after {}", json.at("command").get<std::string>(), state,
                        format_duration(json.at("elapsed_s").get<double>()));
        if (!ended && age_s > kStaleS)
            out += fmt::format(" (no news for {}: the job may hang or be gone)",
                               format_duration(age_s));
        out += fmt::format("\nmodel     {}\nlayout    {}\n", json.at("model").get<std::string>(),
                           json.at("layout").get<std::string>());
        const auto total = requests.at("total").get<int64_t>();
        const auto done = requests.at("done").get<int64_t>();
        out += fmt::format(
            "requests  {}{}{} done, {} running, {} waiting",
            total > 0 ? fmt::format("[{}] ", bar(share_of(done, total), kBarWidth)) : "", done,
            total > 0 ? fmt::format(" of {}", total) : "", requests.at("running").get<int64_t>(),
            requests.at("waiting").get<int64_t>());
        if (requests.at("failed").get<int64_t>() > 0)
            out += fmt::format(", {} failed", requests.at("failed").get<int64_t>());
        out += fmt::format("\ntokens    {:.1f}/s now, {} generated\n",
                           tokens.at("per_s").get<double>(), tokens.at("generated").get<int64_t>());
        const auto pages = cache.at("pages").get<int64_t>(), used = cache.at("used").get<int64_t>();
        if (pages > 0)
            out += fmt::format("cache     [{}] {} of {} pages\n",
                               bar(share_of(used, pages), kBarWidth), used, pages);
        if (json.at("slowest_phase").is_object())
            out += fmt::format("slowest   phase {} ({:.0f} % of all ranks' time)\n",
                               json.at("slowest_phase").at("name").get<std::string>(),
                               json.at("slowest_phase").at("share").get<double>() * 100);
        if (json.at("slowest_rank").is_object())
            out += fmt::format("          rank {} on {} ({}, busy {:.0f} %)\n",
                               json.at("slowest_rank").at("rank").get<int64_t>(),
                               json.at("slowest_rank").at("host").get<std::string>(),
                               json.at("slowest_rank").at("role").get<std::string>(),
                               json.at("slowest_rank").at("busy_share").get<double>() * 100);
        out += busy_lines(json.at("busy_shares").get<std::vector<double>>());
        out += phase_lines(json.at("phases"));
        return out;
    } catch (const Json::exception&) {
        throw Error(ErrorKind::input, "{}: is a status file of another version", where);
    }
}

}  // namespace ferry
