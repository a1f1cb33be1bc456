// `ferry top`: a running job, live in the terminal, from the status file that its rank 0 writes.
#include <fmt/core.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "launch/command_line.h"
#include "launch/commands.h"
#include "launch/status_file.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;

struct Arguments {
    std::string target;
    bool once = false;
    double interval_s = 1;
};

std::atomic<bool> interrupted{false};

// The newest status file in `dir` or in a folder of it.
std::string find_status(const std::string& dir) {
    std::string newest;
    fs::file_time_type newest_time{};
    const auto consider = [&](const fs::path& path) {
        std::error_code missing;
        const fs::file_time_type time = fs::last_write_time(path, missing);
        if (missing || (!newest.empty() && time <= newest_time)) return;
        newest = path.string();
        newest_time = time;
    };
    consider(fs::path(dir) / kStatusFileName);
    if (!newest.empty()) return newest;
    std::error_code unreadable;
    for (const fs::directory_entry& entry : fs::directory_iterator(dir, unreadable))
        if (std::error_code none; entry.is_directory(none))
            consider(entry.path() / kStatusFileName);
    return newest;
}

bool is_job_id(const std::string& target) {
    return !target.empty() && std::all_of(target.begin(), target.end(),
                                          [](unsigned char c) { return std::isdigit(c) != 0; });
}

// What Slurm says of a job, each path on a line of its own; empty when there is no Slurm or no such
// job.
std::string ask_slurm(const std::string& job) {
    std::FILE* pipe = ::popen(("scontrol show job " + job + " 2>/dev/null").c_str(), "r");
    if (pipe == nullptr) return "";
    std::string text;
    char piece[4096];
    for (size_t num = 0; (num = std::fread(piece, 1, sizeof piece, pipe)) > 0;)
        text.append(piece, num);
    ::pclose(pipe);
    return text;
}

// A field that has a line of its own, to the end of it: paths may hold blanks.
std::string field_of(const std::string& text, const std::string& name) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        line.erase(0, line.find_first_not_of(' '));
        if (!line.starts_with(name + "=")) continue;
        line.erase(line.find_last_not_of(' ') + 1);  // Slurm puts one behind the comment
        return line.substr(name.size() + 1);
    }
    return "";
}

std::string status_of_job(const std::string& job) {
    const std::string said = ask_slurm(job);
    if (said.empty())
        throw Error(ErrorKind::usage,
                    "top {}: Slurm (scontrol) does not know this job here; give the job's output "
                    "folder instead: ferry top DIR",
                    job);
    // A batch file may name the folder in its comment: sbatch --comment=ferry:DIR.
    const std::string comment = field_of(said, "Comment"), work = field_of(said, "WorkDir");
    std::string dir = comment.starts_with("ferry:") ? comment.substr(6) : work;
    if (!dir.starts_with("/")) dir = work + "/" + dir;
    const std::string path = find_status(dir);
    if (path.empty())
        throw Error(ErrorKind::input,
                    "top {}: no {} in {} or a folder of it; give the job's output folder: ferry "
                    "top DIR",
                    job, kStatusFileName, dir);
    return path;
}

std::string status_path(const std::string& target) {
    if (fs::is_directory(target)) {
        const std::string path = find_status(target);
        if (path.empty())
            throw Error(ErrorKind::input,
                        "{}: no {} here; ferry generate writes one into output.dir, ferry bench "
                        "into --status-dir",
                        target, kStatusFileName);
        return path;
    }
    if (fs::is_regular_file(target)) return target;
    if (is_job_id(target)) return status_of_job(target);
    throw Error(ErrorKind::input, "{}: is neither a folder nor a Slurm job's number", target);
}

std::string read_all(const std::string& path) {
    std::FILE* file = std::fopen(path.c_str(), "r");
    if (file == nullptr) throw Error(ErrorKind::input, "{}: cannot be read", path);
    std::string text;
    char piece[4096];
    for (size_t num = 0; (num = std::fread(piece, 1, sizeof piece, file)) > 0;)
        text.append(piece, num);
    std::fclose(file);
    return text;
}

double age_s(const std::string& path) {
    struct stat about {};
    if (::stat(path.c_str(), &about) != 0) return 0;
    return std::max(0.0, std::difftime(std::time(nullptr), about.st_mtime));
}

void sleep_unless_interrupted(double seconds) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (!interrupted && std::chrono::steady_clock::now() < end)
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
}

// As much of the text as the terminal shows without a line that wraps or scrolls; each line wipes
// what was behind it.
std::string screen_of(const std::string& text) {
    winsize size{};
    const bool known = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    const int columns = known ? size.ws_col : 80, rows = known ? size.ws_row : 1000;
    std::string screen;
    int column = 0, row = 1;
    for (const char c : text) {
        const bool starts = (static_cast<unsigned char>(c) & 0xC0) != 0x80;  // a character of UTF-8
        if (c == '\n') {
            if (++row > rows) break;
            screen += "\033[K\n";
            column = 0;
        } else if ((column += starts ? 1 : 0) <= columns) {
            screen += c;
        }
    }
    return screen;
}

// Redraws in place until the job has ended or Ctrl-C.
void watch(const std::string& path, double interval_s) {
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = true; };
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
    std::fputs("\033[?25l\033[2J", stdout);  // hide the cursor, clear
    for (bool ended = false; !ended && !interrupted;) {
        const std::string text = read_all(path);
        ended = has_ended(text);
        fmt::print("\033[H{}\033[J", screen_of(status_text(text, path, age_s(path))));
        std::fflush(stdout);
        if (!ended) sleep_unless_interrupted(interval_s);
    }
    std::fputs("\033[?25h", stdout);
    std::fflush(stdout);
}

void top(const Arguments& arguments) {
    const std::string path = status_path(arguments.target);
    if (arguments.once || ::isatty(STDOUT_FILENO) == 0)
        fmt::print("{}", status_text(read_all(path), path, age_s(path)));
    else
        watch(path, arguments.interval_s);
}

}  // namespace

void add_top(Command& app) {
    Command command = app.add_command(
        "top", "Watch a running job: tokens/s, requests, cache pages, slowest phase and rank");
    const auto arguments = std::make_shared<Arguments>();
    command
        .option("TARGET", arguments->target,
                "The job's output folder (or one above it), or the number of a Slurm job")
        .required();
    command.flag("--once", arguments->once,
                 "Print once and end; so it does when the output is no terminal");
    command.option("--interval", arguments->interval_s, "Seconds between two looks")
        .in_range(0.1, 3600.0)
        .show_default();
    command.on_run([arguments] { top(*arguments); });
}

}  // namespace ferry
