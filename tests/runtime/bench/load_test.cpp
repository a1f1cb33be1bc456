#include "runtime/bench/load.h"

#include <gmock/gmock.h>

#include <fstream>

#include "base/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

TEST(LoadBench, PartsCoverAllFilesOnce) {
    const testing::TempDir dir;
    EXPECT_ERROR(weight_files(dir / ""), ErrorKind::checkpoint, "holds no .h5 or .safetensors");
    std::ofstream(dir / "b.h5") << std::string(1001, 'b');
    std::ofstream(dir / "a.safetensors") << std::string(7, 'a');
    std::ofstream(dir / "empty.h5");
    std::ofstream(dir / "config.json") << "{}";
    const std::vector<std::string> paths = weight_files(dir / "");
    ASSERT_EQ(paths.size(), 3u);
    EXPECT_THAT(paths[0], ::testing::HasSubstr("a.safetensors"));
    EXPECT_EQ(weight_files(dir / "b.h5"), paths);
    EXPECT_EQ(total_file_bytes(paths), 1008);
    for (const int64_t count : {1, 2, 5, 2000}) {
        int64_t sum = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t part = read_part(paths, i, count);
            EXPECT_NEAR(static_cast<double>(part), 1008.0 / static_cast<double>(count), 1);
            sum += part;
        }
        EXPECT_EQ(sum, 1008);
    }
}

TEST(LoadBench, CachedShareFollowsReadingAndDropping) {
    const testing::TempDir dir;
    std::ofstream(dir / "w.h5") << std::string(4 << 20, 'w');
    const std::vector<std::string> paths = weight_files(dir / "");
    EXPECT_EQ(cached_share(paths), 1);  // just written
    drop_from_cache(paths);
    const double dropped = cached_share(paths);  // a memory file system keeps its pages
    EXPECT_TRUE(dropped == 0 || dropped == 1) << dropped;
    EXPECT_EQ(read_part(paths, 0, 1), 4 << 20);
    EXPECT_EQ(cached_share(paths), 1);
}

}  // namespace
}  // namespace ferry
