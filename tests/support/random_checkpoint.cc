#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "tests/support/engine_harness.h"

namespace millrace::testing {

std::string random_checkpoint(const std::string& name, const std::vector<std::string>& arguments) {
  const std::filesystem::path path =
      std::filesystem::path(MILLRACE_BINARY_DIR) / "tests" / "checkpoints" / name;
  if (std::filesystem::exists(path)) return path;
  // Made beside its place and renamed, so that tests that run in parallel never see half of it.
  const std::string part = fmt::format("{}.{}.part", path.string(), getpid());
  std::filesystem::create_directories(path.parent_path());
  std::string command = fmt::format("{} {}/scripts/make_random_checkpoint.py --out {}",
                                    MILLRACE_PYTHON, MILLRACE_SOURCE_DIR, part);
  for (const std::string& argument : arguments) command += fmt::format(" '{}'", argument);
  command += " > /dev/null";
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
  std::error_code taken;
  std::filesystem::rename(part, path, taken);
  if (taken) std::filesystem::remove_all(part);
  return path;
}

}  // namespace millrace::testing
