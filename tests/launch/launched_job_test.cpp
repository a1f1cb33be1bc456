#include "launch/launched_job.h"

#include <gmock/gmock.h>

#include "tests/support/expect_error.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;

TEST(LaunchedJob, WordsNameTheRanks) {
    EXPECT_THAT(launcher_words("mpirun -n {ranks}", 4), ElementsAre("mpirun", "-n", "4"));
    EXPECT_THAT(launcher_words("srun  --ntasks={ranks} --mpi=pmix", 16),
                ElementsAre("srun", "--ntasks=16", "--mpi=pmix"));
    EXPECT_THAT(launcher_words("mpirun --oversubscribe", 2),
                ElementsAre("mpirun", "--oversubscribe", "-n", "2"));
    EXPECT_ERROR(launcher_words("  ", 1), ErrorKind::usage, "--launcher: needs a command");
}

TEST(LaunchedJob, TellsHowTheLauncherEnded) {
    EXPECT_EQ(run_launched_job({"sh", "-c", "exit 75"}, {}), 75);
    EXPECT_EQ(run_launched_job({"sh", "-c", "kill -9 $$"}, {}), 128 + 9);
    EXPECT_ERROR(run_launched_job({"no-such-launcher"}, {}), ErrorKind::usage,
                 "--launcher no-such-launcher: cannot be started");
}

}  // namespace
}  // namespace ferry
