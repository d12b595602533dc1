#include "config/version.h"

#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <sstream>

namespace millrace {
namespace {

TEST(Version, IsTheProjects) {
  std::stringstream text;
  text << std::ifstream(MILLRACE_SOURCE_DIR "/CMakeLists.txt").rdbuf();
  std::smatch found;
  const std::string cmake = text.str();
  ASSERT_TRUE(std::regex_search(cmake, found, std::regex(R"(project\(millrace VERSION (\S+))")));
  EXPECT_EQ(found[1].str(), kVersion);
}

}  // namespace
}  // namespace millrace
