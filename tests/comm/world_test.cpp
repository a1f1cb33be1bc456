#include "comm/world.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>

#include "base/cores.h"
#include "base/error.h"
#include "comm/node_memory.h"
#include "comm/progress_state.h"
#include "tests/support/expect_error.h"
#include "tests/support/mpi_main.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

TEST(World, NodesAreNumberedByTheirLowestRank) {
    World& world = test_world();
    EXPECT_EQ(static_cast<int>(world.node_of_rank().size()), world.size());
    EXPECT_EQ(world.node_of_rank()[0], 0);
    EXPECT_FALSE(world.host().empty());
    EXPECT_EQ(world.all_sum(world.node_rank() == 0 ? 1 : 0), world.num_nodes());
}

TEST(World, GathersAndBroadcasts) {
    World& world = test_world();
    const auto all = world.all_gather(std::string(world.rank(), 'x'));
    for (int r = 0; r < world.size(); ++r) EXPECT_EQ(all[r], std::string(r, 'x'));
    std::vector<std::string> texts;  // "" to rank 0, "a" or "b" ... to rank 1
    for (int r = 0; r < world.size(); ++r)
        texts.emplace_back(r, static_cast<char>('a' + world.rank()));
    const auto own = world.all_to_all(texts);
    for (int r = 0; r < world.size(); ++r)
        EXPECT_EQ(own[r], std::string(world.rank(), static_cast<char>('a' + r)));
    const int root = world.size() - 1;
    EXPECT_EQ(world.broadcast(world.rank() == root ? "hello" : "", root), "hello");
    EXPECT_EQ(world.all_max(world.rank()), world.size() - 1);
}

TEST(World, FirstRanksAreAWorldOfTheirOwn) {
    World& world = test_world();
    for (int num = 1; num <= world.size(); ++num) {
        const std::unique_ptr<World> part = world.first_ranks(num);
        EXPECT_EQ(part != nullptr, world.rank() < num);
        if (part != nullptr) {
            EXPECT_EQ(part->rank(), world.rank());
            EXPECT_EQ(part->size(), num);
            EXPECT_EQ(part->all_sum(1), num);
            EXPECT_EQ(part->node_of_rank()[0], 0);
            NodeMemory memory(*part, 0);
            Buffer shared = memory.take(1 << 20);
            memory.barrier();
            shared = Buffer();
            memory.release();
        }
        world.barrier();
    }
}

TEST(World, ALateRankIsNotWaitedForWithoutEnd) {
    World& world = test_world();
    if (world.size() == 1) GTEST_SKIP() << "needs two ranks";
    world.barrier();
    world.set_deadline(0.2, "in this test");
    if (world.rank() == 0) {
        sleep(1);
        world.set_deadline(60, "in this test");
        world.barrier();  // the one that the others gave up
    } else {
        EXPECT_ERROR(world.barrier(), ErrorKind::communication,
                     "s in this test for all ranks to take part in a barrier");
    }
    world.set_deadline(300, "in tests");
}

TEST(World, ALostRankEndsAWait) {
    World& world = test_world();
    if (world.size() == 1) GTEST_SKIP() << "needs two ranks";
    world.barrier();
    if (world.rank() == 0) {
        sleep(1);
        EXPECT_EQ(world.all_sum(0), 0);
    } else {
        progress_state().fail("rank 0 on some host is lost (silent)");
        EXPECT_ERROR(world.all_sum(0), ErrorKind::communication,
                     "rank 0 on some host is lost (silent)");
        progress_state().forget_failure();
    }
}

TEST(NodeMemory, MembersSeeWhatEachWrote) {
    World& world = test_world();
    const bool member = world.rank() != world.size() - 1 || world.size() == 1;
    NodeMemory memory(world, member ? 0 : -1);
    if (!member) return;
    EXPECT_EQ(memory.size(), std::max(1, world.size() - 1));  // the tests run on one node
    const Buffer small = memory.take(100);
    const Buffer large = memory.take(size_t{100} << 20);  // of a window of its own
    for (const Buffer* each : {&small, &large}) {
        EXPECT_EQ(reinterpret_cast<size_t>(each->data()) % 64, 0u);
        EXPECT_EQ(each->as<char>()[memory.rank()], 0);
        memory.barrier();
        each->as<char>()[memory.rank()] = static_cast<char>('a' + memory.rank());
        memory.barrier();
        for (int rank = 0; rank < memory.size(); ++rank)
            EXPECT_EQ(each->as<char>()[rank], 'a' + rank);
    }
}

TEST(NodeMemory, GroupsOfANodeShareApart) {
    World& world = test_world();
    NodeMemory memory(world, world.rank() % 2);
    EXPECT_EQ(memory.size(), (world.size() + 1 - world.rank() % 2) / 2);
    const Buffer buffer = memory.take(100);
    buffer.as<char>()[memory.rank()] = static_cast<char>('a' + world.rank());
    memory.barrier();
    for (int rank = 0; rank < memory.size(); ++rank)
        EXPECT_EQ(buffer.as<char>()[rank], 'a' + 2 * rank + world.rank() % 2);
}

TEST(World, DifferencesBetweenRanksAreNamed) {
    World& world = test_world();
    EXPECT_NO_THROW(check_same_everywhere(world, "build", "abc"));
    if (world.size() == 1) return;
    try {
        check_same_everywhere(world, "configuration", world.rank() == 1 ? "left" : "right");
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::usage);
        EXPECT_THAT(error.what(), HasSubstr("configuration differs between ranks: rank 0 on"));
        EXPECT_THAT(error.what(), HasSubstr("has right, but rank 1 on"));
        EXPECT_THAT(error.what(), HasSubstr("has left; start"));
    }
    const std::string same = "engine:\n  threads: 2\n";
    const std::string mine = world.rank() == 1 ? "  seed: 1\nz: 0\n" : "  seed: 15\nz: 9\n";
    EXPECT_ERROR(check_same_everywhere(world, "configuration", same + mine), ErrorKind::usage,
                 "has seed: 15, but rank 1 on");
    EXPECT_ERROR(
        check_same_everywhere(world, "configuration", same + (world.rank() == 1 ? "" : mine)),
        ErrorKind::usage, "has nothing; start");
}

TEST(World, WarnsOfMoreThreadsThanCores) {
    World& world = test_world();
    EXPECT_THAT(oversubscription_warning(world, 100000), HasSubstr("expect low speed"));
}

TEST(World, RanksOfANodeShareItsCores) {
    World& world = test_world();
    EXPECT_GE(world.own_cores(), 1);
    EXPECT_EQ(world.cores_of_rank().size(), static_cast<size_t>(world.size()));
    // Tests are not bound to cores: all ranks may use all of them.
    if (world.all_max(world.cores() == world.cores_of_rank()[0] ? 0 : 1) > 0) return;
    const int cores = static_cast<int>(allowed_cores().size());
    EXPECT_EQ(world.own_cores(), std::max(1, cores / world.node_size()));
}

}  // namespace
}  // namespace ferry
