// main() of tests that run under mpirun: every rank runs every test; a test fails when it fails on
// any rank. Rank 0 prints the usual report, the others only their failures.
#include "tests/support/mpi_main.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>

namespace ferry {
namespace {

World* world = nullptr;

class RankListener : public testing::EmptyTestEventListener {
    void OnTestPartResult(const testing::TestPartResult& result) override {
        if (world->rank() == 0 || !result.failed()) return;
        std::fprintf(stderr, "rank %d: %s:%d: %s\n", world->rank(),
                     result.file_name() != nullptr ? result.file_name() : "?", result.line_number(),
                     result.summary());
    }
    // Keeps ranks in step, and ends the job once a test has failed anywhere.
    void OnTestEnd(const testing::TestInfo& info) override {
        if (world->all_max(info.result()->Failed() ? 1 : 0) == 0) return;
        if (world->rank() == 0)
            std::fprintf(stderr, "%s.%s failed on some rank\n", info.test_suite_name(),
                         info.name());
        world->barrier();
        world->abort(1);
    }
};

}  // namespace

World& test_world() {
    return *world;
}

}  // namespace ferry

int main(int argc, char** argv) {
    testing::InitGoogleMock(&argc, argv);
    ferry::World world(&argc, &argv);
    ferry::world = &world;
    testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
    if (world.rank() != 0) delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new ferry::RankListener);
    return RUN_ALL_TESTS();
}
