#include "runtime/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <sstream>

#include "base/error.h"
#include "base/log.h"
#include "runtime/journal_files.h"

namespace ferry {
namespace {

constexpr int kSampleBits = 12;  // sampling.n is at most 4096

uint64_t key_of(int64_t index, int64_t sample) {
    return (static_cast<uint64_t>(index) << kSampleBits) | static_cast<uint64_t>(sample);
}

std::string description_path(const std::string& dir) {
    return dir + "/run.yaml";
}
std::string result_path(const std::string& dir) {
    return dir + "/completions.jsonl";
}

std::string read_description(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(stream), {}};
    if (!stream) throw Error(ErrorKind::input, "{}: cannot be read", path);
    return text;
}

// Settings by name ("sampling.seed"), with their values.
std::map<std::string, std::string> settings_of(const std::string& description) {
    std::map<std::string, std::string> settings;
    std::istringstream lines(description);
    std::string section;
    for (std::string line; std::getline(lines, line);) {
        const size_t begin = line.find_first_not_of(' '), colon = line.find(':');
        if (begin == std::string::npos || colon == std::string::npos) continue;
        const std::string key = line.substr(begin, colon - begin);
        const size_t value = line.find_first_not_of(' ', colon + 1);
        if (begin == 0) section = key;
        if (value != std::string::npos)
            settings[begin == 0 ? key : section + "." + key] = line.substr(value);
    }
    return settings;
}

// The first setting that differs, as "sampling.seed: 1 before, 2 now".
std::string first_difference(const std::string& before, const std::string& now) {
    const auto old_settings = settings_of(before), new_settings = settings_of(now);
    for (const auto& [key, value] : new_settings) {
        const auto found = old_settings.find(key);
        if (found == old_settings.end()) return key + " is new (another version of ferry?)";
        if (found->second != value)
            return fmt::format("{}: {} before, {} now", key, found->second, value);
    }
    for (const auto& [key, value] : old_settings)
        if (!new_settings.contains(key)) return key + " is gone (another version of ferry?)";
    return "run.yaml is damaged";
}

// What another run may differ in. Earlier versions of Ferry did not say these: their runs go on, if
// a setting that they did not have is at what it was then.
std::string comparable(const std::string& description, const std::string& other) {
    std::string result = description;
    for (const char* since : {"\neos_tokens: ", "\n  int8_activations: false"}) {
        const size_t begin = result.find(since);
        if (begin == std::string::npos || other.find(since) != std::string::npos) continue;
        result.erase(begin, result.find('\n', begin + 1) - begin);
    }
    return result;
}

// What a run that is done needs no more: its parts, and descriptions whose writers were killed
// before they had their name.
void remove_leftovers(const std::string& dir) {
    for (const std::string& part : list_parts(dir)) ::unlink(part.c_str());
    const std::string prefix =
        std::filesystem::path(description_path(dir)).filename().string() + ".";
    std::error_code error;
    for (std::filesystem::directory_iterator it(dir, error), end; !error && it != end;
         it.increment(error)) {
        const std::string name = it->path().filename().string();
        if (name.starts_with(prefix) && name.ends_with(".tmp")) ::unlink(it->path().c_str());
    }
}

}  // namespace

OutputState prepare_output(const std::string& dir, const std::string& run_description) {
    namespace fs = std::filesystem;
    std::error_code error;
    fs::create_directories(dir, error);
    if (error) throw Error(ErrorKind::input, "{}: cannot be made: {}", dir, error.message());
    const std::string described = description_path(dir);
    const bool has_result = fs::exists(result_path(dir));
    if (!fs::exists(described)) {
        if (has_result || !list_parts(dir).empty())
            throw Error(ErrorKind::usage,
                        "{}: has completions but no run.yaml, so nobody knows what they are of; "
                        "use another output.dir",
                        dir);
        // Of runs that start at once in one folder, one describes it.
        NewFile file(described, fmt::format(".{:08x}.tmp", std::random_device()()));
        file.write(run_description);
        if (file.commit_if_new()) return OutputState::unfinished;
    }
    const std::string before = read_description(described);
    if (before != comparable(run_description, before))
        throw Error(ErrorKind::usage,
                    "{}: holds a run with other results: {}; use another output.dir, or remove "
                    "this one",
                    dir, first_difference(before, run_description));
    if (!has_result) return OutputState::unfinished;
    remove_leftovers(dir);  // in case it was stopped right after merging
    return OutputState::finished;
}

Journal::Journal(const std::string& dir, int rank, const Options& options)
    : path_(part_path(dir, rank)), options_(options), last_sync_(std::chrono::steady_clock::now()) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd_ < 0) fail("cannot be opened", errno);
    // Some parallel file systems have no locks: then nothing warns of two runs in one folder.
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        ::close(fd_);
        throw Error(ErrorKind::usage, "{}: another run is writing to this folder", path_);
    }
    if (std::filesystem::exists(result_path(dir))) {  // while this run started: its parts are gone
        ::close(fd_);
        throw Error(ErrorKind::usage, "{}: another run has just finished in this folder", dir);
    }
    for (const std::string& part : list_parts(dir)) {
        const int64_t whole_bytes = read_part(part, [&](const PartRecord& record) {
            done_.push_back(key_of(record.index, record.sample));
        });
        if (part == path_) size_bytes_ = whole_bytes;
    }
    std::sort(done_.begin(), done_.end());
    done_.erase(std::unique(done_.begin(), done_.end()), done_.end());
    if (::ftruncate(fd_, size_bytes_) != 0) fail("cannot be cut to its whole lines", errno);
    sync_folder(dir);
}

Journal::~Journal() {
    if (fd_ < 0) return;
    if (unsynced_) ::fdatasync(fd_);
    ::close(fd_);
}

bool Journal::is_done(int64_t index, int64_t sample) const {
    return std::binary_search(done_.begin(), done_.end(), key_of(index, sample));
}

void Journal::append(const Completion& completion) {
    const std::string line =
        part_line(completion.index, completion.sample, to_json(completion, options_.with_timings));
    if (const int error = write_all(fd_, line)) {
        // The next run would cut a torn line off too.
        if (::ftruncate(fd_, size_bytes_) != 0) log_warn("{}: ends in a torn line", path_);
        fail("cannot be written", error);
    }
    size_bytes_ += static_cast<int64_t>(line.size());
    ++num_appended_;
    unsynced_ = true;
    tick();
}

void Journal::tick() {
    if (!unsynced_) return;
    const std::chrono::duration<double> since = std::chrono::steady_clock::now() - last_sync_;
    if (since.count() >= options_.sync_interval_s) sync();
}

void Journal::sync() {
    if (unsynced_ && ::fdatasync(fd_) != 0) fail("cannot be written to the disk", errno);
    unsynced_ = false;
    last_sync_ = std::chrono::steady_clock::now();
}

void Journal::fail(const std::string& what, int error_number) const {
    throw Error(ErrorKind::input, "{}: {}: {}; finished requests are kept, run again to go on",
                path_, what, std::strerror(error_number));
}

int64_t merge_output(const std::string& dir, int64_t num_expected) {
    struct Place {
        uint64_t key;
        int32_t part;
        int64_t offset_bytes;
        int64_t num_bytes;
    };
    const std::vector<std::string> parts = list_parts(dir);
    std::vector<Place> places;
    for (size_t i = 0; i < parts.size(); ++i)
        read_part(parts[i], [&](const PartRecord& record) {
            places.push_back({key_of(record.index, record.sample), static_cast<int32_t>(i),
                              record.offset_bytes, static_cast<int64_t>(record.completion.size())});
        });
    std::stable_sort(places.begin(), places.end(),
                     [](const Place& a, const Place& b) { return a.key < b.key; });
    places.erase(std::unique(places.begin(), places.end(),
                             [](const Place& a, const Place& b) { return a.key == b.key; }),
                 places.end());
    if (static_cast<int64_t>(places.size()) < num_expected)
        throw Error(ErrorKind::input,
                    "{}: {} of {} completions are gone from the parts; was another run started in "
                    "this folder?",
                    dir, num_expected - static_cast<int64_t>(places.size()), num_expected);

    std::vector<PartFile> files;
    files.reserve(parts.size());
    for (const std::string& part : parts) files.emplace_back(part);
    NewFile result(result_path(dir));
    std::string line;
    for (const Place& place : places) {
        line.resize(static_cast<size_t>(place.num_bytes) + 1);
        files[static_cast<size_t>(place.part)].read_at(
            place.offset_bytes, static_cast<size_t>(place.num_bytes), line.data());
        line.back() = '\n';
        result.write(line);
    }
    result.commit();
    remove_leftovers(dir);
    return static_cast<int64_t>(places.size());
}

}  // namespace ferry
