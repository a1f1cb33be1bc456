#include "launch/versions.h"

#include <elf.h>
#include <fmt/format.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "comm/world.h"
#include "launch/version_config.h"

namespace ferry {
namespace {

struct Library {
    const char* name;
    std::string version;  // empty: not built in
    const char* use;
};

std::vector<Library> libraries() {
    return {
        {"MPI", FERRY_VERSION_HAS_MPI ? mpi_version() : "", "ranks, transport mpi"},
        {"UCX", FERRY_VERSION_UCX, "transport ucx"},
        {"CUDA", FERRY_VERSION_CUDA, "engine.device cuda"},
        {"NCCL", FERRY_VERSION_NCCL, "transport nccl"},
        {"HDF5", FERRY_VERSION_HDF5, "checkpoints"},
        {"AMX", FERRY_VERSION_AMX, "numerics.bf16_activations amx"},
        {"Highway", FERRY_VERSION_HIGHWAY, "CPU kernels"},
        {"Oniguruma", FERRY_VERSION_ONIGURUMA, "tokenizer"},
        {"utf8proc", FERRY_VERSION_UTF8PROC, "tokenizer"},
        {"xxHash", FERRY_VERSION_XXHASH, "checksums"},
        {"yaml-cpp", FERRY_VERSION_YAML_CPP, "configuration"},
        {"nlohmann-json", FERRY_VERSION_JSON, "requests"},
        {"CLI11", FERRY_VERSION_CLI11, "command line"},
        {"fmt", FERRY_VERSION_FMT, "messages"},
        {"spdlog", FERRY_VERSION_SPDLOG, "log"},
    };
}

std::string version_of(const Library& library) {
    return library.version.empty() ? "not built in" : library.version;
}

std::string own_version() {
    return fmt::format("{} ({}, {})", FERRY_VERSION, FERRY_BUILD_TYPE, FERRY_COMPILER);
}

}  // namespace

std::vector<std::pair<std::string, std::string>> list_versions() {
    std::vector<std::pair<std::string, std::string>> list{{"ferry", own_version()}};
    for (const Library& library : libraries()) list.emplace_back(library.name, version_of(library));
    return list;
}

std::string describe_versions() {
    std::string text = "ferry " + own_version() + "\n";
    for (const Library& library : libraries())
        text += fmt::format("  {:<14} {:<16} {}\n", library.name, version_of(library), library.use);
    text.pop_back();  // whoever prints it ends the line
    return text;
}

namespace {

// Of notes of an executable (elf(5)): sizes and type, a name and a text, each padded to 4 bytes.
std::string build_id_in(const char* at, const char* end) {
    const auto padded = [](size_t bytes) { return (bytes + 3) / 4 * 4; };
    while (end - at > static_cast<ptrdiff_t>(sizeof(ElfW(Nhdr)))) {
        const auto* note = reinterpret_cast<const ElfW(Nhdr)*>(at);
        const std::string_view name(at + sizeof *note, note->n_namesz);
        const char* const text = name.data() + padded(name.size());
        if (note->n_type == NT_GNU_BUILD_ID && name == std::string_view("GNU", 4)) {
            const auto* id = reinterpret_cast<const unsigned char*>(text);
            return fmt::format("{:02x}", fmt::join(id, id + note->n_descsz, ""));
        }
        at = text + padded(note->n_descsz);
    }
    return "";
}

}  // namespace

std::string build_id() {
    std::string id;
    const auto look = [](dl_phdr_info* object, size_t, void* found) {
        for (int i = 0; i < object->dlpi_phnum; ++i) {
            const ElfW(Phdr)& part = object->dlpi_phdr[i];
            if (part.p_type != PT_NOTE) continue;
            const auto* notes = reinterpret_cast<const char*>(object->dlpi_addr + part.p_vaddr);
            *static_cast<std::string*>(found) += build_id_in(notes, notes + part.p_memsz);
        }
        return 1;  // the first object is the executable: no other
    };
    dl_iterate_phdr(look, &id);
    return id;
}

std::string describe_environment() {
    // What launchers set for each process says nothing about how it runs.
    constexpr std::string_view kOfLaunchers[] = {"OMPI_MCA_orte_", "OMPI_MCA_ess_", "OMPI_MCA_pmix",
                                                 "OMPI_MCA_initial_wdir"};
    constexpr std::string_view kShown[] = {"UCX_", "OMPI_MCA_", "NCCL_", "FERRY_"};
    std::vector<std::string> found;
    for (char** entry = environ; *entry != nullptr; ++entry) {
        const std::string_view text(*entry);
        const auto begins = [&](std::string_view prefix) { return text.starts_with(prefix); };
        if (std::ranges::any_of(kShown, begins) && std::ranges::none_of(kOfLaunchers, begins))
            found.emplace_back(text);
    }
    std::ranges::sort(found);
    return fmt::format("{}", fmt::join(found, " "));
}

}  // namespace ferry
