#include "cli/devices_command.h"

#include <fmt/format.h>

#include "worker/device_backend.h"

namespace millrace {

int run_devices(bool plain) {
  const DeviceBackend* backend = device_backend();
  if (backend == nullptr) {
    if (!plain) fmt::print("This build has no CUDA: workers compute on the CPU.\n");
    return 0;
  }
  const auto devices = backend->devices(/*in_this_process=*/true);
  if (!devices) {
    fmt::print(stderr, "millrace: {}\n", devices.error().to_string());
    return 1;
  }
  if (plain) {
    fmt::print("{}", format_devices(*devices));
    return 0;
  }
  if (devices->empty()) fmt::print("No device: workers compute on the CPU.\n");
  for (const DeviceFacts& d : *devices) {
    fmt::print(
        "{:>3}  {}  compute capability {}.{}, {} multiprocessors, {:.1f} of {:.1f} GiB free\n",
        d.index, d.name, d.compute_capability / 10, d.compute_capability % 10, d.sm_count,
        static_cast<double>(d.free_bytes) / (1ULL << 30),
        static_cast<double>(d.total_bytes) / (1ULL << 30));
  }
  return 0;
}

}  // namespace millrace
