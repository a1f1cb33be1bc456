// What the launcher (mpirun, srun) says in the environment of the tasks that it starts.
#pragma once
#include <functional>
#include <string>
#include <vector>

namespace ferry {

// Reads an environment variable; null: unset.
using GetEnv = std::function<const char*(const char*)>;
const char* own_environment(const char* name);  // of this process

// Tasks that the launcher says it started: 1 when there is no launcher or it does not say.
int launcher_tasks(const GetEnv& get);

// Throws Error(usage) where the launcher started several tasks: `command` is for one.
void refuse_several_tasks(const GetEnv& get, const std::string& command);

// This task's number, 0 when there is no launcher.
int launcher_rank(const GetEnv& get);

// How long ranks may take to find each other, s: 300, or FERRY_START_TIMEOUT_S. Throws
// Error(usage) when that is no positive number.
int start_timeout_s(const GetEnv& get);

// Whether srun gave its tasks nothing by which this MPI library could find the others: no PMIx for
// Open MPI, no PMI at all for others. `mpi_version`: World's. Such a task aborts in MPI_Init, or
// becomes a world of its own.
bool lacks_process_manager(const GetEnv& get, const std::string& mpi_version);

// Ranks of each component of the job, in order: of a heterogeneous Slurm job (`srun
// --het-group=0,1 ...`) or of `mpirun -n 2 A : -n 4 B`. Empty when the launcher does not say, one
// element when the job has one component. Throws Error(usage) for a step that does not use the
// components of its job as they were allocated, so that nobody could tell who is in which.
std::vector<int> launcher_components(const GetEnv& get);

}  // namespace ferry
