#include "comm/launcher.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <numeric>
#include <sstream>
#include <string>
#include <system_error>

#include "base/error.h"

namespace ferry {
namespace {

int number(const char* text) {
    return text == nullptr ? 0 : std::atoi(text);
}

std::string text_of(const char* value) {
    return value == nullptr ? "" : value;
}

// Slurm's "4,2(x3)": 4, 2, 2, 2.
std::vector<int> expand_repeats(const std::string& text) {
    std::vector<int> values;
    std::istringstream items(text);
    for (std::string item; std::getline(items, item, ',');) {
        const size_t times = item.find("(x");
        const int repeats = times == std::string::npos ? 1 : number(item.c_str() + times + 2);
        values.insert(values.end(), static_cast<size_t>(std::max(0, repeats)),
                      number(item.c_str()));
    }
    return values;
}

// Open MPI sets mpirun's variables too when srun started it, with PMIx's own name of the job.
bool started_by_mpirun(const GetEnv& get) {
    return get("OMPI_COMM_WORLD_SIZE") != nullptr &&
           !text_of(get("PMIX_NAMESPACE")).starts_with("slurm.");
}

bool in_slurm_step(const GetEnv& get) {
    return get("SLURM_PROCID") != nullptr && get("SLURM_STEP_ID") != nullptr;
}

// Each task sees the tasks of the whole job, by component and node, and those of its own step.
std::vector<int> slurm_components(const GetEnv& get) {
    const int num_components = std::max(1, number(get("SLURM_HET_SIZE")));
    if (num_components == 1) return {number(get("SLURM_STEP_NUM_TASKS"))};
    std::vector<int> components, nodes;
    for (int i = 0; i < num_components; ++i) {
        const std::string name = fmt::format("SLURM_TASKS_PER_NODE_HET_GROUP_{}", i);
        const std::vector<int> group = expand_repeats(text_of(get(name.c_str())));
        components.push_back(std::accumulate(group.begin(), group.end(), 0));
        nodes.insert(nodes.end(), group.begin(), group.end());
    }
    const std::string step = text_of(get("SLURM_STEP_TASKS_PER_NODE"));
    if (expand_repeats(step) != nodes)
        throw Error(ErrorKind::usage,
                    "the components of this heterogeneous job have {} tasks by node, but this step "
                    "has {}; start it over all of them (srun --het-group=0-{}), with as many tasks "
                    "as --ntasks-per-node says in each component",
                    fmt::join(nodes, "+"), fmt::join(expand_repeats(step), "+"),
                    num_components - 1);
    return components;
}

}  // namespace

const char* own_environment(const char* name) {
    return std::getenv(name);
}

int launcher_tasks(const GetEnv& get) {
    int tasks = 1;
    // Open MPI's mpirun, MPICH's hydra, Slurm (of the step: SLURM_NTASKS alone is set in the batch
    // shell too, where one rank is right).
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"})
        tasks = std::max(tasks, number(get(name)));
    if (in_slurm_step(get)) tasks = std::max(tasks, number(get("SLURM_STEP_NUM_TASKS")));
    return tasks;
}

void refuse_several_tasks(const GetEnv& get, const std::string& command) {
    if (const int tasks = launcher_tasks(get); tasks > 1)
        throw Error(ErrorKind::usage, "{}: runs on one rank, the launcher started {}", command,
                    tasks);
}

int launcher_rank(const GetEnv& get) {
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"})
        if (const char* rank = get(name)) return number(rank);
    return 0;
}

int start_timeout_s(const GetEnv& get) {
    const std::string text = text_of(get("FERRY_START_TIMEOUT_S"));
    if (text.empty()) return 300;
    int seconds = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
    if (error != std::errc() || end != text.data() + text.size() || seconds <= 0)
        throw Error(ErrorKind::usage,
                    "FERRY_START_TIMEOUT_S: must be a whole number of seconds, 1 or more; is {}",
                    text);
    return seconds;
}

bool lacks_process_manager(const GetEnv& get, const std::string& mpi_version) {
    if (!in_slurm_step(get) || number(get("SLURM_STEP_NUM_TASKS")) < 2) return false;
    if (get("OMPI_COMM_WORLD_SIZE") != nullptr || get("PMIX_RANK") != nullptr) return false;
    return mpi_version.starts_with("Open MPI") || get("PMI_RANK") == nullptr;
}

std::vector<int> launcher_components(const GetEnv& get) {
    const char* ranks = get("OMPI_APP_CTX_NUM_PROCS");
    if (ranks != nullptr && started_by_mpirun(get)) {
        std::vector<int> components;
        std::istringstream words(ranks);
        for (int count = 0; words >> count;) components.push_back(count);
        return components;
    }
    if (in_slurm_step(get)) return slurm_components(get);
    return {};
}

}  // namespace ferry
