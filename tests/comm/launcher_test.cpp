#include "comm/launcher.h"

#include <gmock/gmock.h>

#include <map>
#include <string>

#include "base/error.h"
#include "tests/support/expect_error.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Environment = std::map<std::string, const char*>;

GetEnv reader(Environment env) {
    return [env = std::move(env)](const char* name) -> const char* {
        const auto found = env.find(name);
        return found == env.end() ? nullptr : found->second;
    };
}

// As seen in tasks of Slurm 22.05: 2 tasks on one node, then 1 on each of 2 nodes.
Environment two_components() {
    return {{"SLURM_PROCID", "3"},
            {"SLURM_STEP_ID", "0"},
            {"SLURM_STEP_NUM_TASKS", "4"},
            {"SLURM_STEP_TASKS_PER_NODE", "2,1(x2)"},
            {"SLURM_HET_SIZE", "2"},
            {"SLURM_TASKS_PER_NODE_HET_GROUP_0", "2"},
            {"SLURM_TASKS_PER_NODE_HET_GROUP_1", "1(x2)"}};
}

TEST(LauncherTasks, ReadsTheLaunchersVariables) {
    const auto tasks = [](Environment env) { return launcher_tasks(reader(std::move(env))); };
    EXPECT_EQ(tasks({}), 1);
    EXPECT_EQ(tasks({{"OMPI_COMM_WORLD_SIZE", "4"}}), 4);
    EXPECT_EQ(tasks({{"PMI_SIZE", "3"}}), 3);
    // In a batch shell Slurm's variables speak of the job, not of this process.
    EXPECT_EQ(tasks({{"SLURM_NTASKS", "8"}, {"SLURM_STEP_NUM_TASKS", "8"}}), 1);
    EXPECT_EQ(tasks({{"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "8"}}),
              8);
}

TEST(LauncherTasks, WithoutAProcessManagerNobodyFindsTheOthers) {
    const Environment step{
        {"SLURM_PROCID", "2"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "8"}};
    const auto with = [&](const char* name) {
        Environment env = step;
        env[name] = "3";
        return env;
    };
    EXPECT_TRUE(lacks_process_manager(reader(step), "Open MPI v4.1.4"));
    EXPECT_TRUE(lacks_process_manager(reader(step), "MPICH 4.0.2"));
    EXPECT_FALSE(lacks_process_manager(reader(with("PMIX_RANK")), "Open MPI v4.1.4"));
    EXPECT_TRUE(lacks_process_manager(reader(with("PMI_RANK")), "Open MPI v4.1.4"));  // pmi2
    EXPECT_FALSE(lacks_process_manager(reader(with("PMI_RANK")), "MPICH 4.0.2"));
    // mpirun in a step, one task, no step: nothing is missing.
    EXPECT_FALSE(lacks_process_manager(reader(with("OMPI_COMM_WORLD_SIZE")), "Open MPI v4.1.4"));
    EXPECT_FALSE(lacks_process_manager(reader({}), "Open MPI v4.1.4"));
    Environment one = step;
    one["SLURM_STEP_NUM_TASKS"] = "1";
    EXPECT_FALSE(lacks_process_manager(reader(one), "Open MPI v4.1.4"));
    EXPECT_EQ(launcher_rank(reader(step)), 2);
    EXPECT_EQ(launcher_rank(reader(with("PMIX_RANK"))), 3);
    EXPECT_EQ(launcher_rank(reader({})), 0);
}

TEST(StartTimeout, IsAPositiveNumberOfSeconds) {
    const auto timeout = [](const char* text) {
        return start_timeout_s(reader({{"FERRY_START_TIMEOUT_S", text}}));
    };
    EXPECT_EQ(start_timeout_s(reader({})), 300);
    EXPECT_EQ(timeout(""), 300);
    EXPECT_EQ(timeout("7"), 7);
    for (const char* wrong : {"abc", "0", "-5", "10m", "2.5", " 7", "99999999999"})
        EXPECT_ERROR(timeout(wrong), ErrorKind::usage, std::string("1 or more; is ") + wrong);
}

TEST(LauncherComponents, OfSlurmAndOfMpirun) {
    EXPECT_THAT(launcher_components(reader({})), IsEmpty());
    EXPECT_THAT(launcher_components(reader(two_components())), ElementsAre(2, 2));
    const auto of_mpirun = [](const char* ranks) {
        return launcher_components(
            reader({{"OMPI_COMM_WORLD_SIZE", "3"}, {"OMPI_APP_CTX_NUM_PROCS", ranks}}));
    };
    EXPECT_THAT(of_mpirun("1 2 "), ElementsAre(1, 2));
    EXPECT_THAT(of_mpirun("3"), ElementsAre(3));
    Environment plain{{"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "8"}};
    EXPECT_THAT(launcher_components(reader(plain)), ElementsAre(8));
    // MPI_Init of Open MPI sets this also in tasks that srun started.
    Environment direct = two_components();
    direct["OMPI_APP_CTX_NUM_PROCS"] = "4";
    EXPECT_THAT(launcher_components(reader(direct)), ElementsAre(2, 2));
    // mpirun in a batch shell of a heterogeneous job.
    Environment inside = two_components();
    inside["OMPI_APP_CTX_NUM_PROCS"] = "5 6";
    inside["OMPI_COMM_WORLD_SIZE"] = "11";
    EXPECT_THAT(launcher_components(reader(inside)), ElementsAre(5, 6));
}

TEST(LauncherComponents, StepMustUseThemAsAllocated) {
    for (const char* step : {"1(x2)", "1(x3)", "1,2,1", ""}) {
        Environment env = two_components();
        env["SLURM_STEP_TASKS_PER_NODE"] = step;
        try {
            launcher_components(reader(env));
            ADD_FAILURE() << step;
        } catch (const Error& error) {
            EXPECT_EQ(error.kind(), ErrorKind::usage);
            EXPECT_THAT(error.what(), HasSubstr("have 2+1+1 tasks by node, but this step has"));
            EXPECT_THAT(error.what(), HasSubstr("srun --het-group=0-1"));
        }
    }
}

}  // namespace
}  // namespace ferry
