#include "comm/watchdog.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <mutex>

#include "base/error.h"
#include "base/trace.h"
#include "comm/progress_state.h"
#include "comm/tcp_link.h"
#include "comm/waiter.h"
#include "tests/support/mpi_main.h"

namespace ferry {
namespace {

using testing::HasSubstr;

template <typename Done>
bool within_s(double seconds, Done&& done) {
    const int64_t begin = trace_now_ns();
    while (!done()) {
        if (static_cast<double>(trace_now_ns() - begin) > seconds * 1e9) return false;
        usleep(2000);
    }
    return true;
}

// Both kinds of addresses, as far as this host has them.
TEST(TcpLink, IsReachedAtEveryAddressOfTheHost) {
    const TcpListener listener;
    const std::vector<std::string> addresses = own_addresses();
    EXPECT_FALSE(addresses.empty());
    for (const std::string& address : addresses)
        EXPECT_TRUE(connect_to({address}, listener.port(), 2).open()) << address;
    const bool has_v6 = std::ifstream("/proc/net/if_inet6").peek() != EOF;
    EXPECT_EQ(std::ranges::count(addresses, std::string("::1")), has_v6 ? 1 : 0);
    EXPECT_FALSE(connect_to({"localhost", ""}, listener.port(), 2).open());
}

TEST(TcpLink, CarriesWholeMessagesAndTellsTheEnd) {
    TcpListener listener;
    TcpLink client = connect_to({"127.0.0.1"}, listener.port(), 2);
    ASSERT_TRUE(client.open());
    std::optional<TcpLink> server;
    ASSERT_TRUE(within_s(5, [&] { return (server = listener.accept()).has_value(); }));
    bool gone = true;
    EXPECT_FALSE(server->receive(gone).has_value());
    EXPECT_FALSE(gone);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(client.send({.kind = NewsKind::lost, .rank = i}));
    for (int i = 0; i < 3; ++i) {
        std::optional<News> news;
        ASSERT_TRUE(within_s(5, [&] { return (news = server->receive(gone)).has_value(); }));
        EXPECT_EQ(news->rank, i);
    }
    client.close();
    EXPECT_TRUE(within_s(5, [&] {
        server->receive(gone);
        return gone;
    }));
}

TEST(Watchdog, QuietWhileAllIsWell) {
    World& world = test_world();
    {
        Watchdog watchdog(world, {.heartbeat_s = 0.02,
                                  .dead_after_s = 5,
                                  .stall_timeout_s = 0.2,
                                  .report = {},
                                  .give_up = {}});
        usleep(300'000);  // not armed: no stall
        watchdog.arm(true);
        for (int i = 0; i < 40; ++i) {
            usleep(10'000);
            progress_state().beat();
        }
        EXPECT_FALSE(watchdog.failed()) << watchdog.failure();
        world.barrier();  // ranks leave at different times: farewells are no losses
        if (world.rank() % 2 == 0) usleep(100'000);
    }
    world.barrier();
    EXPECT_EQ(progress_state().failure(), "");
}

// One rank stands still: every rank reports, every wait ends in an error that says why, and who
// does not stop is stopped.
TEST(Watchdog, AStallIsReportedByEveryRank) {
    World& world = test_world();
    const int stuck = world.size() - 1;
    std::mutex mutex;
    std::string report;
    std::atomic<bool> gave_up{false};
    world.barrier();
    {
        Watchdog watchdog(world, {.heartbeat_s = 0.02,
                                  .dead_after_s = 30,
                                  .stall_timeout_s = world.rank() == stuck ? 0.3 : 100,
                                  .grace_s = 0.1,
                                  .report =
                                      [&](const std::string& text) {
                                          const std::scoped_lock lock(mutex);
                                          report = text;
                                      },
                                  .give_up = [&] { gave_up = true; }});
        watchdog.arm(true);
        progress_state().step = 12;
        progress_state().layer = 3;
        progress_state().micro_batch = 1;
        const auto transport = make_self_transport();
        Waiter waiter(*transport, 100);
        if (world.size() == 1 || world.rank() != stuck) {
            waiter.begin(Activity::waiting_combine, 3, 1);
            try {
                for (;;) waiter.poll([](auto add) { add(0); });
            } catch (const Error& error) {
                EXPECT_EQ(error.kind(), ErrorKind::communication);
                EXPECT_THAT(error.what(), HasSubstr(fmt::format("rank {} on", stuck)));
                EXPECT_THAT(error.what(), HasSubstr("makes no progress (for 0 s)"));
            }
            waiter.end();
        }
        EXPECT_TRUE(within_s(10, [&] { return gave_up.load(); }));
        const std::scoped_lock lock(mutex);
        EXPECT_THAT(report, HasSubstr("step 12, layer 3, micro-batch 1"));
        EXPECT_THAT(report,
                    HasSubstr(fmt::format("rank {} on {} is at", world.rank(), world.host())));
        // Nobody's connection may close before all have seen the stall; a barrier would not wait
        // while there is a failure.
        watchdog.arm(false);
        progress_state().forget_failure();
        world.barrier();
    }
}

}  // namespace
}  // namespace ferry
