// HDF5 files of tensors: contiguous datasets, attributes, links into other files. The one user of
// the HDF5 library. The library makes and reads the structure; bulk data goes by pread and pwrite
// at the datasets' file offsets, so that threads need not wait for the library's single lock.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "layers/weight_source.h"
#include "runtime/model_description.h"

namespace ferry {

// A contiguous dataset and where its bytes lie. f32 and bf16 are HDF5 floating-point types; fp8 is
// bytes; the attribute `dtype` names the type for both kinds of reader.
struct Hdf5Dataset {
    std::string name;  // path without the leading slash
    TensorInfo info;
    int64_t offset_bytes = 0;
    Attributes attributes;
};

// Rows of a dataset that is put together from several files.
struct Hdf5Source {
    std::string file;  // beside the file that refers to it
    int64_t num_rows = 0;
};

// An open file. Move-only; closes itself. Every failure is Error(checkpoint) with the path, the
// object and the library's own message. Thread-safe: one lock for the whole library.
class Hdf5File {
  public:
    static Hdf5File create(const std::string& path);  // replaces what is there
    static Hdf5File open(const std::string& path);    // for reading
    static Hdf5File open_writable(const std::string& path);
    ~Hdf5File();
    Hdf5File(Hdf5File&&) noexcept;

    // `object` is a path, "" the root. Setting replaces.
    void set_attribute(const std::string& object, const std::string& name, const Attribute& value);
    Attributes attributes(const std::string& object) const;

    // Groups on the way are made. The space is allocated but not written.
    void create_dataset(const std::string& name, const TensorInfo& info);
    void create_text(const std::string& name, const std::string& text);
    std::string read_text(const std::string& name) const;
    std::optional<std::string> find_text(const std::string& name) const;  // of the root group

    // `name` here is the dataset of the same name in `file`, a path relative to this file.
    void link_external(const std::string& name, const std::string& file);
    // A virtual dataset: rows of dimension 0 from the datasets of the same name in other files.
    void create_virtual(const std::string& name, const TensorInfo& info,
                        std::span<const Hdf5Source> sources);

    // All tensors of this file, links not followed. Throws when one is not contiguous or of a type
    // that Ferry does not write. The shard's own texts (checkpoint_format.h) are none of them.
    std::vector<Hdf5Dataset> datasets() const;
    // A box of any dataset, links and virtual ones too, by the library (slow; data paths use
    // StoredTensor).
    void read(const std::string& name, std::span<const Range> ranges, void* dst) const;

    // Writes everything out. Throws, where the destructor could not.
    void close();

    const std::string& path() const { return path_; }

  private:
    struct Handle;
    Hdf5File(std::string path, std::unique_ptr<Handle> handle);

    std::string path_;
    std::unique_ptr<Handle> handle_;
};

}  // namespace ferry
