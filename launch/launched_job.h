// Starts this executable once more, through a launcher (mpirun, srun), as a job of its own.
#pragma once
#include <string>
#include <vector>

namespace ferry {

// What starts jobs here: srun within a Slurm allocation, else mpirun.
std::string default_launcher();

// The words of `launcher` with {ranks} replaced; without one, "-n RANKS" is added. Throws
// Error(usage) for no word.
std::vector<std::string> launcher_words(const std::string& launcher, int num_ranks);

// Runs `words` and this executable with `arguments` in a process group of their own, standard
// output thrown away, and waits for the end. A signal that asks this process to stop reaches the
// job as SIGUSR1, which mpirun and srun hand to all ranks. Returns the exit code, or 128 + the
// signal that ended the launcher. Throws Error(usage) when the launcher cannot be started.
int run_launched_job(const std::vector<std::string>& words,
                     const std::vector<std::string>& arguments);

}  // namespace ferry
