#include "cli/verify_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "cli/cell_setup.h"
#include "cli/checksums.h"
#include "config/random_model.h"

namespace millrace {

namespace {

namespace fs = std::filesystem;

int fail(const std::string& why) {
  fmt::print(stderr, "millrace: {}\n", why);
  return 1;
}

fs::path sums_beside(const fs::path& model) {
  return (fs::is_directory(model) ? model : model.parent_path()) / kSumsName;
}

}  // namespace

int run_verify(const VerifyCommand& command) {
  const Result<CellSetup> setup = make_cell_setup(command.config);
  if (!setup) return fail(setup.error().to_string());
  const std::string& model = setup->config.model.path;
  if (is_random_model(model)) {
    fmt::print("{}: a shape alone, it has no files\n", model);
    return 0;
  }
  fmt::print("{}: every tensor is there and has its shape\n", model);
  std::string sums = command.sums;
  if (sums.empty()) {
    sums = sums_beside(model);
    if (!fs::exists(sums)) {
      fmt::print("{}: contents not compared: there is no {}\n", model, sums);
      return 0;
    }
  }
  std::fflush(stdout);
  const bool terminal = isatty(STDERR_FILENO) == 1;
  const auto begin = std::chrono::steady_clock::now();
  const int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const Result<SumCheck> check =
      check_sums(model, sums, threads, [&](std::uint64_t done, std::uint64_t total) {
        if (terminal) fmt::print(stderr, "\rverifying {:3d} %", 100 * done / std::max(total, done));
      });
  if (terminal) fmt::print(stderr, "\r               \r");
  if (!check) return fail(check.error().to_string());
  for (const std::string& problem : check->problems) fail(problem);
  if (!check->problems.empty()) return 1;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  fmt::print("{}: {} {} as in {}, {:.2f} GB in {:.1f} s\n", model, check->files,
             check->files == 1 ? "file" : "files", sums, static_cast<double>(check->bytes) * 1e-9,
             seconds);
  return 0;
}

}  // namespace millrace
