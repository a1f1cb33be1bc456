#include "comm/watchdog.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "comm/progress_state.h"
#include "comm/tcp_link.h"

namespace ferry {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kGatherMs = 10;
constexpr double kReachS = 3;  // at start, for a connection and for the answer

double seconds_since(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

struct Watchdog::Impl {
    struct Peer {
        TcpLink link;
        int rank = -1;  // unknown until its hello
        bool left = false;
        Clock::time_point heard = Clock::now();
    };

    Impl(World& w, const WatchdogOptions& o) : options(o), rank(w.rank()), size(w.size()) {
        for (int r = 0; r < size; ++r) hosts.push_back(w.host(r));
        statuses.resize(static_cast<size_t>(size));
        if (!options.report)
            options.report = [](const std::string& text) { log_error("{}", text); };
        if (!options.give_up)
            options.give_up = [] {
                std::fflush(nullptr);
                std::_Exit(exit_code(ErrorKind::communication));
            };
        if (size > 1) connect(w);
        if (pipe(wake) != 0)
            throw Error(ErrorKind::communication, "the watchdog cannot make a pipe: {}",
                        std::strerror(errno));
        progress_state().watched = true;
        thread = std::thread([this] { run(); });
    }

    // Rank 0 tells where it listens; everybody connects and says hello.
    void connect(World& world) {
        std::string place;
        std::optional<TcpListener> listener;
        if (rank == 0) {
            listener.emplace();
            place = fmt::format("{} {}", listener->port(), std::random_device{}());
            for (const std::string& address : own_addresses()) place += " " + address;
        }
        std::istringstream words(world.broadcast(place, 0));
        int port = 0;
        words >> port >> key;
        std::vector<std::string> addresses;
        for (std::string address; words >> address;) addresses.push_back(address);
        if (rank == 0) {
            // All come at once, and the system lets few of them wait (net.core.somaxconn).
            world.barrier([&] {
                while (std::optional<TcpLink> link = listener->accept())
                    peers.emplace_back().link = std::move(*link);
                for (Peer& peer : peers) read(peer);
                return false;
            });
            met = true;
            return;
        }
        if (world.node_of_rank()[0] == world.node())
            addresses.insert(addresses.begin(), "127.0.0.1");
        Peer peer;
        peer.link = reach_rank_0(addresses, port);
        peer.rank = 0;
        if (peer.link.open())
            peers.push_back(std::move(peer));
        else
            log_warn(
                "watchdog: cannot reach rank 0 on {} over TCP; a rank that is lost will be noticed "
                "by the stall timeout only",
                hosts[0]);
        world.barrier();
        met = true;
    }

    // A connection counts when rank 0 has answered: another program may listen at one of its
    // addresses here, and one that found rank 0's queue full may look made and be none.
    TcpLink reach_rank_0(const std::vector<std::string>& addresses, int port) const {
        const Clock::time_point begin = Clock::now();
        bool any = true;
        while (any && seconds_since(begin) < 3 * kReachS) {
            any = false;
            for (const std::string& address : addresses) {
                TcpLink link = connect_to({address}, port, kReachS);
                any |= link.open();
                if (link.send(news(NewsKind::hello, rank, "")) && is_answered(link)) return link;
            }
        }
        return {};
    }
    bool is_answered(TcpLink& link) const {
        const Clock::time_point begin = Clock::now();
        for (bool gone = false; !gone && seconds_since(begin) < kReachS;) {
            pollfd socket{.fd = link.socket(), .events = POLLIN, .revents = 0};
            poll(&socket, 1, static_cast<int>(kReachS * 1000));
            const std::optional<News> message = link.receive(gone);
            if (message) return message->magic == News{}.magic && message->key == key;
        }
        return false;
    }

    News news(NewsKind kind, int about, const std::string& why) const {
        News message{.kind = kind, .rank = about, .key = key};
        std::strncpy(message.why, why.c_str(), sizeof message.why - 1);
        message.status = progress_state().status();
        return message;
    }

    void run() {
        for (Peer& peer : peers) peer.heard = Clock::now();
        while (!stop.load()) {
            wait_for_news();
            for (Peer& peer : peers) read(peer);
            if (seconds_since(last_beat) >= options.heartbeat_s) {
                last_beat = Clock::now();
                for (Peer& peer : peers) peer.link.send(news(NewsKind::heartbeat, rank, ""));
            }
            for (Peer& peer : peers)
                if (peer.link.open() && !peer.left && peer.rank >= 0 &&
                    seconds_since(peer.heard) > options.dead_after_s)
                    lost(peer, fmt::format("silent for {:.0f} s", options.dead_after_s));
            check_stall();
            check_grace();
        }
        for (Peer& peer : peers) peer.link.send(news(NewsKind::farewell, rank, ""));
    }

    void wait_for_news() {
        std::vector<pollfd> sockets{{.fd = wake[0], .events = POLLIN, .revents = 0}};
        for (const Peer& peer : peers)
            if (peer.link.open())
                sockets.push_back({.fd = peer.link.socket(), .events = POLLIN, .revents = 0});
        // Rank 0 of a thousand hears thousands of messages a second: not one by one.
        poll(sockets.data(), 1, kGatherMs);
        poll(sockets.data(), sockets.size(), static_cast<int>(options.heartbeat_s * 500));
    }

    void read(Peer& peer) {
        bool gone = false;
        while (const std::optional<News> message = peer.link.receive(gone)) {
            if (message->magic != News{}.magic || message->key != key) {
                peer.link.close();  // not of this job
                return;
            }
            peer.heard = Clock::now();
            switch (message->kind) {
                case NewsKind::hello:
                    if (message->rank >= 0 && message->rank < size) greet(peer, message->rank);
                    break;
                case NewsKind::heartbeat:
                    if (rank == 0 && peer.rank > 0) {
                        const std::lock_guard lock(statuses_mutex);
                        statuses[static_cast<size_t>(peer.rank)] = message->status;
                    }
                    break;
                case NewsKind::farewell:
                    peer.left = true;
                    break;
                case NewsKind::lost:
                case NewsKind::stalled:
                    fail(message->kind, message->rank, message->why);
                    break;
            }
        }
        if (!gone) return;
        if (met && !peer.left && peer.rank >= 0)
            lost(peer, "connection closed");
        else
            peer.link.close();
    }

    // Who comes again had no answer in time.
    void greet(Peer& peer, int from) {
        for (Peer& before : peers)
            if (before.rank == from) before = Peer();
        peer.rank = from;
        peer.link.send(news(NewsKind::hello, rank, ""));
    }

    void lost(Peer& peer, const std::string& why) {
        peer.link.close();
        fail(NewsKind::lost, peer.rank, why);
    }

    // Once: tell the others (rank 0 passes on what it hears), report, stop the waits.
    void fail(NewsKind kind, int about, const std::string& why) {
        if (progress_state().failed.load()) return;
        for (Peer& peer : peers) peer.link.send(news(kind, about, why));
        const std::string failure =
            fmt::format("rank {} on {} {} ({})", about, hosts[about],
                        kind == NewsKind::lost ? "is lost" : "makes no progress", why);
        options.report(fmt::format("stopping: {}; rank {} on {} is at {}", failure, rank,
                                   hosts[rank], progress_state().describe()));
        failed_at = Clock::now();
        progress_state().fail(failure);
    }

    void check_stall() {
        const uint64_t beats = progress_state().beats.load();
        if (beats != last_beats || !armed.load()) {
            last_beats = beats;
            last_progress = Clock::now();
            return;
        }
        if (seconds_since(last_progress) > options.stall_timeout_s)
            fail(NewsKind::stalled, rank, fmt::format("for {:.0f} s", options.stall_timeout_s));
    }

    void check_grace() {
        if (!progress_state().failed.load() || gave_up || ending.load()) return;
        if (seconds_since(failed_at) < options.grace_s) return;
        gave_up = true;
        options.give_up();
    }

    WatchdogOptions options;
    int rank;
    int size;
    uint32_t key = 0;
    std::vector<std::string> hosts;
    mutable std::mutex statuses_mutex;
    std::vector<RankStatus> statuses;  // rank 0: of the others, by rank
    std::vector<Peer> peers;           // rank 0: all others; others: rank 0
    int wake[2] = {-1, -1};
    std::thread thread;
    std::atomic<bool> stop{false};
    std::atomic<bool> ending{false};
    std::atomic<bool> armed{false};
    Clock::time_point last_beat{};
    Clock::time_point last_progress = Clock::now();
    Clock::time_point failed_at{};
    uint64_t last_beats = 0;
    bool met = false;  // until then a rank may come again
    bool gave_up = false;
};

Watchdog::Watchdog(World& world, const WatchdogOptions& options)
    : impl_(std::make_unique<Impl>(world, options)) {}

Watchdog::~Watchdog() {
    impl_->ending = true;
    impl_->stop = true;
    const char byte = 0;
    if (write(impl_->wake[1], &byte, 1) != 1) impl_->stop = true;  // the thread's poll ends anyway
    impl_->thread.join();
    close(impl_->wake[0]);
    close(impl_->wake[1]);
    progress_state().watched = false;
}

void Watchdog::arm(bool armed) {
    progress_state().beat();
    impl_->armed = armed;
}

int64_t Watchdog::total(Tally tally) const {
    int64_t sum = progress_state().get(tally);
    const std::lock_guard lock(impl_->statuses_mutex);
    for (const RankStatus& rank : impl_->statuses) sum += rank.tallies[static_cast<size_t>(tally)];
    return sum;
}

RankStatus Watchdog::status_of(int rank) const {
    if (rank == impl_->rank) return progress_state().status();
    const std::lock_guard lock(impl_->statuses_mutex);
    return impl_->statuses[static_cast<size_t>(rank)];
}

bool Watchdog::failed() const {
    return progress_state().failed.load();
}

std::string Watchdog::failure() const {
    return progress_state().failure();
}

}  // namespace ferry
