#include "cli/pack_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "worker/checkpoint/packed_file.h"

namespace millrace {

int run_pack(const PackCommand& command) {
  PackOptions options;
  options.model = command.config.model.path;
  options.out = command.out;
  options.weights = command.config.model.cpu_weights;
  options.threads = command.config.grid.threads_per_rank;
  if (options.threads == 0) {
    options.threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  }
  const bool terminal = isatty(STDERR_FILENO) == 1;
  int shown = -1;
  options.progress = [&](std::uint64_t done, std::uint64_t total) {
    const int percent = static_cast<int>(100 * done / std::max<std::uint64_t>(1, total));
    if (!terminal || percent == shown) return;
    shown = percent;
    fmt::print(stderr, "\rpacking {:3d} %", percent);
  };
  const Result<PackSummary> packed = write_packed(options);
  if (terminal && shown >= 0) fmt::print(stderr, "\r             \r");
  if (!packed) {
    fmt::print(stderr, "millrace: {}\n", packed.error().to_string());
    return 1;
  }
  fmt::print("{}: {} of {} tensors packed, {:.2f} GiB\n", command.out, packed->packed_tensors,
             packed->tensors, static_cast<double>(packed->bytes) / (1024.0 * 1024.0 * 1024.0));
  return 0;
}

}  // namespace millrace
