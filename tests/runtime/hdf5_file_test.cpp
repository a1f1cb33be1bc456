#include "runtime/hdf5_file.h"

#include <gtest/gtest.h>

#include "runtime/output_file.h"
#include "runtime/stored_tensor.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using testing::TempDir;

// A file of one dataset whose bytes are `bytes`, written past the library.
void write_dataset(const std::string& path, const std::string& name, const TensorInfo& info,
                   const std::string& bytes) {
    Hdf5File file = Hdf5File::create(path);
    file.create_dataset(name, info);
    file.set_attribute(name, "dtype", std::string(to_string(info.dtype)));
    const int64_t offset = file.datasets().at(0).offset_bytes;
    file.close();
    OutputFile(path).write_at(offset, bytes.size(), bytes.data());
}

std::string all_codes(size_t num) {
    std::string bytes(num, '\0');
    for (size_t i = 0; i < num; ++i) bytes[i] = static_cast<char>(i * 37 + i / 256);
    return bytes;
}

TEST(Hdf5File, BytesAreExactForEveryType) {
    const TempDir dir;
    for (DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3}) {
        SCOPED_TRACE(to_string(dtype));
        const TensorInfo info{dtype, {64, 1024}};
        const std::string bytes = all_codes(static_cast<size_t>(size_bytes(info)));
        write_dataset(dir / "x.h5", "a/b/c", info, bytes);

        const Hdf5File file = Hdf5File::open(dir / "x.h5");
        const std::vector<Hdf5Dataset> datasets = file.datasets();
        ASSERT_EQ(datasets.size(), 1u);
        EXPECT_EQ(datasets[0].name, "a/b/c");
        EXPECT_EQ(datasets[0].info.dtype, dtype);
        EXPECT_EQ(datasets[0].info.shape, info.shape);
        EXPECT_EQ(datasets[0].offset_bytes % 4096, 0);

        // By the library, and past it.
        std::string got(bytes.size(), '\0');
        file.read("a/b/c", whole_box(info.shape), got.data());
        EXPECT_EQ(got, bytes);
        InputFile(dir / "x.h5").read_at(datasets[0].offset_bytes, got.size(), got.data());
        EXPECT_EQ(got, bytes);
        const int64_t element = size_bytes(dtype);
        std::string box(static_cast<size_t>(2 * 3 * element), '\0');
        const Range ranges[] = {{5, 2}, {100, 3}};
        file.read("a/b/c", ranges, box.data());
        EXPECT_EQ(box.substr(0, static_cast<size_t>(3 * element)),
                  bytes.substr(static_cast<size_t>((5 * 1024 + 100) * element),
                               static_cast<size_t>(3 * element)));
    }
}

TEST(Hdf5File, AttributesOfEveryKind) {
    const TempDir dir;
    {
        Hdf5File file = Hdf5File::create(dir / "x.h5");
        file.create_dataset("w", {DType::f32, {2}});
        file.set_attribute("", "count", int64_t{-7});
        file.set_attribute("", "eps", 1e-6);
        file.set_attribute("", "name", std::string("V3 \xe6\xb7\xb1"));
        file.set_attribute("", "empty", std::string());
        file.set_attribute("w", "xxh3", std::string(16, '0'));
        file.set_attribute("w", "xxh3", std::string("0123456789abcdef"));
        file.set_attribute("w", "xxh3", std::string("longer than it was"));
        file.create_text("config_json", "{\"a\": 1}");
        file.close();
    }
    const Hdf5File file = Hdf5File::open(dir / "x.h5");
    const Attributes root = file.attributes("");
    EXPECT_EQ(root.at("count"), Attribute(int64_t{-7}));
    EXPECT_EQ(root.at("eps"), Attribute(1e-6));
    EXPECT_EQ(root.at("name"), Attribute(std::string("V3 \xe6\xb7\xb1")));
    EXPECT_EQ(root.at("empty"), Attribute(std::string()));
    EXPECT_EQ(file.attributes("w").at("xxh3"), Attribute(std::string("longer than it was")));
    EXPECT_EQ(file.read_text("config_json"), "{\"a\": 1}");
}

TEST(Hdf5File, DatasetsOfEveryGroupAreListed) {
    const TempDir dir;
    const std::vector<std::string> names = {"a", "b/c", "b/d/x", "b/d/y", "b/e", "f", "g/c"};
    {
        Hdf5File file = Hdf5File::create(dir / "x.h5");
        for (size_t i = 0; i < names.size(); ++i)
            file.create_dataset(names[i], {DType::f32, {static_cast<int64_t>(i) + 1}});
        file.close();
    }
    const std::vector<Hdf5Dataset> datasets = Hdf5File::open(dir / "x.h5").datasets();
    ASSERT_EQ(datasets.size(), names.size());
    for (size_t i = 0; i < names.size(); ++i) {
        EXPECT_EQ(datasets[i].name, names[i]);
        EXPECT_EQ(datasets[i].info.shape, std::vector<int64_t>{static_cast<int64_t>(i) + 1});
    }
}

TEST(Hdf5File, DatasetsThatAreNotContiguousAreRefused) {
    const TempDir dir;
    write_dataset(dir / "s0.h5", "w", {DType::bf16, {2, 4}}, all_codes(16));
    Hdf5File file = Hdf5File::create(dir / "x.h5");
    const Hdf5Source sources[] = {{"s0.h5", 2}};
    file.create_virtual("w", {DType::bf16, {2, 4}}, sources);
    EXPECT_ERROR(file.datasets(), ErrorKind::checkpoint, "dataset /w", "not stored contiguously");
}

TEST(Hdf5File, MasterShowsWhatIsInOtherFiles) {
    const TempDir dir;
    const std::string bytes = all_codes(5 * 4 * 2);
    write_dataset(dir / "s0.h5", "e/w", {DType::bf16, {2, 4}}, bytes.substr(0, 16));
    write_dataset(dir / "s1.h5", "e/w", {DType::bf16, {3, 4}}, bytes.substr(16));
    write_dataset(dir / "s2.h5", "d", {DType::fp8_e4m3, {7}}, "0123456");
    {
        Hdf5File master = Hdf5File::create(dir / "model.h5");
        const Hdf5Source sources[] = {{"s0.h5", 2}, {"s1.h5", 3}};
        master.create_virtual("e/w", {DType::bf16, {5, 4}}, sources);
        master.link_external("d", "s2.h5");
        master.close();
    }
    const Hdf5File master = Hdf5File::open(dir / "model.h5");
    std::string got(bytes.size(), '\0');
    const Range whole[] = {{0, 5}, {0, 4}};
    master.read("e/w", whole, got.data());
    EXPECT_EQ(got, bytes);
    const Range all[] = {{0, 7}};
    master.read("d", all, got.data());
    EXPECT_EQ(got.substr(0, 7), "0123456");
}

TEST(Hdf5File, ErrorsNameFileAndObject) {
    const TempDir dir;
    EXPECT_ERROR(Hdf5File::open(dir / "none.h5"), ErrorKind::checkpoint, "none.h5", "No such file");
    testing::write_file(dir / "text.h5", "not HDF5");
    EXPECT_ERROR(Hdf5File::open(dir / "text.h5"), ErrorKind::checkpoint, "text.h5",
                 "cannot be opened as HDF5", "signature");
    EXPECT_ERROR(Hdf5File::create(dir / "no/such/folder.h5"), ErrorKind::checkpoint, "folder.h5",
                 "cannot be created");
    Hdf5File file = Hdf5File::create(dir / "x.h5");
    EXPECT_ERROR(file.read_text("config"), ErrorKind::checkpoint, "x.h5", "/config");
    EXPECT_ERROR(file.create_dataset("i", {DType::i32, {1}}), ErrorKind::checkpoint, "/i", "i32");
    file.create_dataset("w", {DType::f32, {2}});
    EXPECT_ERROR(file.create_dataset("w", {DType::f32, {2}}), ErrorKind::checkpoint, "/w");
    EXPECT_ERROR(file.attributes("v"), ErrorKind::checkpoint, "x.h5", "/v");
    file.create_text("t", "text is no tensor");
    EXPECT_ERROR(file.datasets(), ErrorKind::checkpoint, "/t");
}

}  // namespace
}  // namespace ferry
