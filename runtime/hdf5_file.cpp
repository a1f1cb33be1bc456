#include "runtime/hdf5_file.h"

#include <hdf5.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <utility>

#include "base/error.h"
#include "runtime/checkpoint_format.h"
#include "runtime/stored_tensor.h"

namespace ferry {
namespace {

constexpr int kMaxRank = Tensor::kMaxRank;
constexpr size_t kMaxTextBytes = size_t{256} << 20;
constexpr size_t kMaxAttributeBytes = size_t{64} << 10;
constexpr hsize_t kAlignedFromBytes = 64 << 10;  // larger datasets begin at pages
constexpr hsize_t kPageBytes = 4096;

std::mutex& library_mutex() {
    static std::mutex mutex;
    // A file that could not be written stays open in the library, which would crash on it at the
    // end of the process. All that matters is closed by then.
    [[maybe_unused]] static const herr_t no_end = H5dont_atexit();
    return mutex;
}

// Of a failed read or write the library tells everything; the system's reason is what helps.
std::string shorten(const std::string& message) {
    constexpr std::string_view kNumber = "errno = ";
    const size_t number = message.find(kNumber);
    if (number == std::string::npos) return message;
    const int reason = std::atoi(message.c_str() + number + kNumber.size());
    const bool is_full = reason == ENOSPC || reason == EDQUOT || reason == EFBIG;
    return (is_full ? "disk full: " : "") + std::string(std::strerror(reason));
}

// The library's own words about what failed: the deepest entry of its error stack.
std::string library_message() {
    std::string message = "unknown reason";
    const auto keep_last = [](unsigned, const H5E_error2_t* entry, void* text) -> herr_t {
        if (entry->desc != nullptr) *static_cast<std::string*>(text) = entry->desc;
        return 0;
    };
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_last, &message);
    H5Eclear2(H5E_DEFAULT);
    for (char& c : message)
        if (c == '\n') c = ' ';
    return shorten(message);
}

// Any id of the library; closed when it goes.
class Id {
  public:
    Id() = default;
    explicit Id(hid_t id) : id_(id) {}
    Id(Id&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
    Id& operator=(Id&& other) noexcept {
        std::swap(id_, other.id_);
        return *this;
    }
    ~Id() { close(); }
    herr_t close() {
        const hid_t id = std::exchange(id_, H5I_INVALID_HID);
        if (id < 0) return 0;
        switch (H5Iget_type(id)) {
            case H5I_FILE:
                return H5Fclose(id);
            case H5I_DATASET:
                return H5Dclose(id);
            case H5I_DATASPACE:
                return H5Sclose(id);
            case H5I_DATATYPE:
                return H5Tclose(id);
            case H5I_ATTR:
                return H5Aclose(id);
            case H5I_GENPROP_LST:
                return H5Pclose(id);
            default:
                return H5Oclose(id);
        }
    }
    operator hid_t() const { return id_; }

  private:
    hid_t id_ = H5I_INVALID_HID;
};

// Checks the library's results; knows which object of which file is at work.
class Call {
  public:
    Call(const std::string& path, std::string what) : path_(path), what_(std::move(what)) {}

    Id id(hid_t result) const {
        if (result < 0) fail(library_message());
        return Id(result);
    }
    template <typename T>
    T ok(T result) const {
        if (result < 0) fail(library_message());
        return result;
    }
    [[noreturn]] void fail(const std::string& why) const {
        throw Error(ErrorKind::checkpoint, "{}: {}: {}", path_, what_, why);
    }

  private:
    const std::string& path_;
    std::string what_;
};

Id bf16_type(const Call& call) {
    Id type = call.id(H5Tcopy(H5T_IEEE_F32LE));
    call.ok(H5Tset_fields(type, 15, 7, 8, 0, 7));
    call.ok(H5Tset_precision(type, 16));
    call.ok(H5Tset_size(type, 2));
    call.ok(H5Tset_ebias(type, 127));
    call.ok(H5Tset_norm(type, H5T_NORM_IMPLIED));
    return type;
}

Id type_of(DType dtype, const Call& call) {
    switch (dtype) {
        case DType::f32:
            return call.id(H5Tcopy(H5T_IEEE_F32LE));
        case DType::bf16:
            return bf16_type(call);
        case DType::fp8_e4m3:
        case DType::int4x2:
            return call.id(H5Tcopy(H5T_STD_U8LE));
        default:
            call.fail(fmt::format("{} is not stored in checkpoints", to_string(dtype)));
    }
}

Id text_type(size_t num_bytes, const Call& call) {
    Id type = call.id(H5Tcopy(H5T_C_S1));
    call.ok(H5Tset_size(type, std::max<size_t>(num_bytes, 1)));
    call.ok(H5Tset_strpad(type, H5T_STR_NULLPAD));
    call.ok(H5Tset_cset(type, H5T_CSET_UTF8));
    return type;
}

Id space_of(std::span<const int64_t> shape, const Call& call) {
    std::array<hsize_t, kMaxRank> extents{};
    if (shape.empty() || shape.size() > extents.size())
        call.fail(fmt::format("{} dimensions", shape.size()));
    std::copy(shape.begin(), shape.end(), extents.begin());
    return call.id(H5Screate_simple(static_cast<int>(shape.size()), extents.data(), nullptr));
}

std::vector<int64_t> shape_of(hid_t dataset, const Call& call) {
    const Id space = call.id(H5Dget_space(dataset));
    const int rank = call.ok(H5Sget_simple_extent_ndims(space));
    if (rank < 1 || rank > kMaxRank) call.fail(fmt::format("has {} dimensions", rank));
    std::array<hsize_t, kMaxRank> extents{};
    call.ok(H5Sget_simple_extent_dims(space, extents.data(), nullptr));
    std::vector<int64_t> shape(extents.begin(), extents.begin() + rank);
    if (!checked_count(shape)) call.fail("has a shape that is too large");
    return shape;
}

// The type of a dataset and its size in memory must be one of those that type_of() makes.
DType dtype_of(hid_t dataset, hid_t bf16, const Attributes& attributes, const Call& call) {
    const Id stored = call.id(H5Dget_type(dataset));
    if (call.ok(H5Tequal(stored, H5T_IEEE_F32LE)) > 0) return DType::f32;
    if (call.ok(H5Tequal(stored, bf16)) > 0) return DType::bf16;
    const auto name = attributes.find("dtype");
    if (name != attributes.end() && call.ok(H5Tequal(stored, H5T_STD_U8LE)) > 0)
        for (const DType dtype : {DType::fp8_e4m3, DType::int4x2})
            if (name->second == Attribute(std::string(to_string(dtype)))) return dtype;
    call.fail("has an unknown element type, neither f32, bf16, fp8_e4m3 nor int4x2");
}

std::optional<Attribute> read_attribute(hid_t attribute, const Call& call) {
    const Id type = call.id(H5Aget_type(attribute));
    if (H5Aget_storage_size(attribute) != H5Tget_size(type)) return std::nullopt;  // several values
    switch (H5Tget_class(type)) {
        case H5T_INTEGER: {
            int64_t value = 0;
            call.ok(H5Aread(attribute, H5T_NATIVE_INT64, &value));
            return value;
        }
        case H5T_FLOAT: {
            double value = 0;
            call.ok(H5Aread(attribute, H5T_NATIVE_DOUBLE, &value));
            return value;
        }
        case H5T_STRING: {
            const size_t num_bytes = H5Tget_size(type);
            if (call.ok(H5Tis_variable_str(type)) > 0 || num_bytes > kMaxAttributeBytes)
                return std::nullopt;
            std::string text(num_bytes, '\0');
            call.ok(H5Aread(attribute, type, text.data()));
            return text.substr(0, text.find('\0'));
        }
        default:
            return std::nullopt;  // not one of ours
    }
}

Attributes read_attributes(hid_t object, const Call& call) {
    std::vector<std::string> names;  // first: what throws must not go through the library
    const auto collect = [](hid_t, const char* name, const H5A_info_t*, void* list) -> herr_t {
        static_cast<std::vector<std::string>*>(list)->emplace_back(name);
        return 0;
    };
    call.ok(H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, collect, &names));
    Attributes attributes;
    for (const std::string& name : names) {
        const Id attribute = call.id(H5Aopen(object, name.c_str(), H5P_DEFAULT));
        if (std::optional<Attribute> value = read_attribute(attribute, call))
            attributes.emplace(name, std::move(*value));
    }
    return attributes;
}

Id open_object(hid_t file, const std::string& object, const Call& call) {
    return call.id(H5Oopen(file, object.empty() ? "/" : object.c_str(), H5P_DEFAULT));
}

Id with_groups(const Call& call) {
    Id list = call.id(H5Pcreate(H5P_LINK_CREATE));
    call.ok(H5Pset_create_intermediate_group(list, 1));
    return list;
}

// Without the time of day: the same input gives the same bytes.
Id dataset_creation(const Call& call) {
    Id list = call.id(H5Pcreate(H5P_DATASET_CREATE));
    call.ok(H5Pset_obj_track_times(list, false));
    return list;
}

Id file_access(const Call& call) {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // messages travel in Error
    Id list = call.id(H5Pcreate(H5P_FILE_ACCESS));
    call.ok(H5Pset_alignment(list, kAlignedFromBytes, kPageBytes));
    call.ok(H5Pset_fclose_degree(list, H5F_CLOSE_STRONG));
    // Parallel file systems are often mounted without locks, and files of a checkpoint are written
    // under temporary names.
    call.ok(H5Pset_file_locking(list, false, true));
    return list;
}

}  // namespace

struct Hdf5File::Handle {
    Id file;
};

Hdf5File::Hdf5File(std::string path, std::unique_ptr<Handle> handle)
    : path_(std::move(path)), handle_(std::move(handle)) {}
Hdf5File::Hdf5File(Hdf5File&&) noexcept = default;

Hdf5File Hdf5File::create(const std::string& path) {
    const std::lock_guard lock(library_mutex());
    const Call call(path, "cannot be created");
    const Id access = file_access(call);
    Id file = call.id(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access));
    return {path, std::make_unique<Handle>(Handle{std::move(file)})};
}

namespace {

Id open_file(const std::string& path, unsigned mode) {
    const InputFile exists(path);  // a plainer message than the library's
    const Call call(path, "cannot be opened as HDF5");
    const Id access = file_access(call);
    return call.id(H5Fopen(path.c_str(), mode, access));
}

}  // namespace

Hdf5File Hdf5File::open(const std::string& path) {
    const std::lock_guard lock(library_mutex());
    return {path, std::make_unique<Handle>(Handle{open_file(path, H5F_ACC_RDONLY)})};
}

Hdf5File Hdf5File::open_writable(const std::string& path) {
    const std::lock_guard lock(library_mutex());
    return {path, std::make_unique<Handle>(Handle{open_file(path, H5F_ACC_RDWR)})};
}

Hdf5File::~Hdf5File() {
    if (handle_ == nullptr) return;
    const std::lock_guard lock(library_mutex());
    handle_.reset();
}

void Hdf5File::close() {
    const std::lock_guard lock(library_mutex());
    const Call call(path_, "cannot be closed");
    if (handle_ == nullptr) return;
    const std::unique_ptr<Handle> handle = std::move(handle_);
    call.ok(H5Fflush(handle->file, H5F_SCOPE_LOCAL));
    call.ok(handle->file.close());
}

void Hdf5File::set_attribute(const std::string& object, const std::string& name,
                             const Attribute& value) {
    const std::lock_guard lock(library_mutex());
    const Call call(path_, "attribute " + name + " of /" + object);
    const Id owner = open_object(handle_->file, object, call);
    const Id space = call.id(H5Screate(H5S_SCALAR));
    const auto* text = std::get_if<std::string>(&value);
    const Id type = text != nullptr
                        ? text_type(text->size(), call)
                        : call.id(H5Tcopy(value.index() == 0 ? H5T_STD_I64LE : H5T_IEEE_F64LE));
    const void* data = text != nullptr      ? static_cast<const void*>(text->c_str())
                       : value.index() == 0 ? &std::get<int64_t>(value)
                                            : static_cast<const void*>(&std::get<double>(value));
    Id attribute;
    if (call.ok(H5Aexists(owner, name.c_str())) > 0) {
        attribute = call.id(H5Aopen(owner, name.c_str(), H5P_DEFAULT));
        const Id old_type = call.id(H5Aget_type(attribute));
        if (call.ok(H5Tequal(old_type, type)) == 0) {  // in place when it fits
            call.ok(attribute.close());
            call.ok(H5Adelete(owner, name.c_str()));
        }
    }
    if (attribute < 0)
        attribute = call.id(H5Acreate2(owner, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT));
    call.ok(H5Awrite(attribute, type, data));
}

Attributes Hdf5File::attributes(const std::string& object) const {
    const std::lock_guard lock(library_mutex());
    const Call call(path_, "attributes of /" + object);
    return read_attributes(open_object(handle_->file, object, call), call);
}

namespace {

Hdf5Dataset describe_dataset(hid_t dataset, std::string name, hid_t bf16, const Call& call) {
    Hdf5Dataset found{.name = std::move(name), .info = {}, .offset_bytes = 0, .attributes = {}};
    found.attributes = read_attributes(dataset, call);
    found.info.shape = shape_of(dataset, call);
    found.info.dtype = dtype_of(dataset, bf16, found.attributes, call);
    // Of every other layout, and of data in other files, the library knows no offset.
    const haddr_t offset = H5Dget_offset(dataset);
    if (offset == HADDR_UNDEF) call.fail("is not stored contiguously in this file (repacked?)");
    found.offset_bytes = static_cast<int64_t>(offset);
    return found;
}

// The datasets of a file by name. H5Ovisit() would open every one twice.
class Listing {
  public:
    explicit Listing(const std::string& path)
        : path_(path), bf16_(bf16_type(Call(path, "its datasets cannot be listed"))) {}

    // Those of a group and of the groups in it; `folder` is its path with the slash behind it.
    void add(hid_t group, const std::string& folder) {
        const Call listing(path_, "group /" + folder);
        H5O_info_t info;
        listing.ok(H5Oget_info2(group, &info, H5O_INFO_BASIC));
        if (!groups_.insert(info.addr).second) return;  // groups may hold each other
        std::vector<std::string> names;  // first: what throws must not go through the library
        const auto collect = [](hid_t, const char* name, const H5L_info_t* link,
                                void* list) -> herr_t {
            if (link->type == H5L_TYPE_HARD)
                static_cast<std::vector<std::string>*>(list)->emplace_back(name);
            return 0;
        };
        listing.ok(H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names));
        for (const std::string& name : names) {
            if (folder.empty() && (name == checkpoint_format::kIndexText ||
                                   name == checkpoint_format::kBlockSumsText))
                continue;
            const Call call(path_, "dataset /" + folder + name);
            const Id object = call.id(H5Oopen(group, name.c_str(), H5P_DEFAULT));
            const H5I_type_t type = H5Iget_type(object);
            if (type == H5I_GROUP) add(object, folder + name + "/");
            if (type == H5I_DATASET)
                datasets_.push_back(describe_dataset(object, folder + name, bf16_, call));
        }
    }
    std::vector<Hdf5Dataset> take() { return std::move(datasets_); }

  private:
    const std::string& path_;
    Id bf16_;
    std::set<haddr_t> groups_;
    std::vector<Hdf5Dataset> datasets_;
};

}  // namespace

void Hdf5File::create_dataset(const std::string& name, const TensorInfo& info) {
    const std::lock_guard lock(library_mutex());
    const Call call(path_, "dataset /" + name);
    const Id groups = with_groups(call);
    const Id creation = dataset_creation(call);
    call.ok(H5Pset_layout(creation, H5D_CONTIGUOUS));
    call.ok(H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY));
    call.ok(H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER));
    const Id type = type_of(info.dtype, call);
    const Id space = space_of(info.shape, call);
    call.id(H5Dcreate2(handle_->file, name.c_str(), type, space, groups, creation, H5P_DEFAULT));
}

void Hdf5File::create_text(const std::string& name, const std::string& text) {
    const std::lock_guard lock(library_mutex());
    const Call call(path_, "dataset /" + name);
    const Id groups = with_groups(call);
    const Id type = text_type(text.size(), call);
    const Id space = call.id(H5Screate(H5S_SCALAR));
    const Id creation = dataset_creation(call);
    const Id dataset = call.id(
        H5Dcreate2(handle_->file, name.c_str(), type, space, groups, creation, H5P_DEFAULT));
    call.ok(H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text.c_str()));
}

std::string Hdf5File::read_text(const std::string& name) const {
    const std::lock_guard lock(library_mutex());
    const Call call(path_, "dataset /" + name);
    const Id dataset = call.id(H5Dopen2(handle_->file, name.c_str(), H5P_DEFAULT));
    const Id type = call.id(H5Dget_type(dataset));
    const Id space = call.id(H5Dget_space(dataset));
    if (H5Tget_class(type) != H5T_STRING || call.ok(H5Tis_variable_str(type)) > 0 ||
        call.ok(H5Sget_simple_extent_npoints(space)) != 1 || H5Tget_size(type) > kMaxTextBytes)
        call.fail("is not a text of fixed length");
    std::string text(H5Tget_size(type), '\0');
    call.ok(H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text.data()));
    return text.substr(0, text.find('\0'));
}

std::optional<std::string> Hdf5File::find_text(const std::string& name) const {
    {
        const std::lock_guard lock(library_mutex());
        const Call call(path_, "dataset /" + name);
        if (call.ok(H5Lexists(handle_->file, name.c_str(), H5P_DEFAULT)) == 0) return std::nullopt;
    }
    return read_text(name);
}

void Hdf5File::link_external(const std::string& name, const std::string& file) {
    const std::lock_guard lock(library_mutex());
    const Call call(path_, "link /" + name);
    call.ok(H5Lcreate_external(file.c_str(), ("/" + name).c_str(), handle_->file, name.c_str(),
                               with_groups(call), H5P_DEFAULT));
}

void Hdf5File::create_virtual(const std::string& name, const TensorInfo& info,
                              std::span<const Hdf5Source> sources) {
    const std::lock_guard lock(library_mutex());
    const Call call(path_, "virtual dataset /" + name);
    const Id creation = dataset_creation(call);
    const Id space = space_of(info.shape, call);
    std::vector<hsize_t> start(info.shape.size(), 0);
    std::vector<hsize_t> count(info.shape.begin(), info.shape.end());
    for (const Hdf5Source& source : sources) {
        count[0] = static_cast<hsize_t>(source.num_rows);
        const Id source_space =
            call.id(H5Screate_simple(static_cast<int>(count.size()), count.data(), nullptr));
        call.ok(H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(),
                                    nullptr));
        call.ok(H5Pset_virtual(creation, space, source.file.c_str(), ("/" + name).c_str(),
                               source_space));
        start[0] += count[0];
    }
    call.ok(H5Sselect_all(space));
    const Id groups = with_groups(call);
    call.id(H5Dcreate2(handle_->file, name.c_str(), type_of(info.dtype, call), space, groups,
                       creation, H5P_DEFAULT));
}

std::vector<Hdf5Dataset> Hdf5File::datasets() const {
    const std::lock_guard lock(library_mutex());
    const Call call(path_, "its datasets cannot be listed");
    Listing list(path_);
    list.add(open_object(handle_->file, "", call), "");
    return list.take();
}

void Hdf5File::read(const std::string& name, std::span<const Range> ranges, void* dst) const {
    const std::lock_guard lock(library_mutex());
    const Call call(path_, "dataset /" + name);
    const Id dataset = call.id(H5Dopen2(handle_->file, name.c_str(), H5P_DEFAULT));
    const std::vector<int64_t> shape = shape_of(dataset, call);
    FERRY_CHECK(shape.size() == ranges.size(), "{} dimensions of {}", ranges.size(),
                describe_shape(shape));
    std::vector<hsize_t> start, count;
    for (const Range& range : ranges) {
        start.push_back(static_cast<hsize_t>(range.begin));
        count.push_back(static_cast<hsize_t>(range.num));
    }
    const Id space = call.id(H5Dget_space(dataset));
    call.ok(
        H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr));
    const Id memory =
        call.id(H5Screate_simple(static_cast<int>(count.size()), count.data(), nullptr));
    const Id type = call.id(H5Dget_type(dataset));  // the file's own: no conversion
    call.ok(H5Dread(dataset, type, memory, space, H5P_DEFAULT, dst));
}

}  // namespace ferry
