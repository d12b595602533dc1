#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "tests/support/engine_harness.h"

namespace millrace::testing {

namespace {

// What a test was built with, or what its environment says where it runs away from its build.
std::string place(const char* variable, const std::string& built) {
  const char* given = std::getenv(variable);
  return given != nullptr ? given : built;
}

}  // namespace

std::string source_folder() { return place("MILLRACE_TEST_SOURCE_DIR", MILLRACE_SOURCE_DIR); }

std::string made_by(const std::string& script, const std::string& name,
                    const std::vector<std::string>& arguments) {
  const std::filesystem::path folder =
      place("MILLRACE_TEST_CHECKPOINTS", MILLRACE_BINARY_DIR "/tests/checkpoints");
  const std::filesystem::path path = folder / name;
  if (std::filesystem::exists(path)) return path;
  // Made beside its place and renamed, so that tests that run in parallel never see half of it.
  const std::string part = fmt::format("{}.{}.part", path.string(), getpid());
  std::filesystem::create_directories(path.parent_path());
  std::string command =
      fmt::format("{} {}/{} --out {}", place("MILLRACE_TEST_PYTHON", MILLRACE_PYTHON),
                  source_folder(), script, part);
  for (const std::string& argument : arguments) command += fmt::format(" '{}'", argument);
  command += " > /dev/null";
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
  std::error_code taken;
  std::filesystem::rename(part, path, taken);
  if (taken) std::filesystem::remove_all(part);
  return path;
}

std::string random_checkpoint(const std::string& name, const std::vector<std::string>& arguments) {
  return made_by("scripts/make_random_checkpoint.py", name, arguments);
}

}  // namespace millrace::testing
