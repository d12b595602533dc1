#include "worker/cuda/device_probe.h"

#include <fmt/format.h>

#include <array>
#include <cstdio>

#include "kernels/cuda/runtime.h"

namespace millrace {

std::vector<DeviceFacts> ask_devices() {
  std::vector<DeviceFacts> out;
  for (int i = 0; i < kernels::cuda::device_count(); ++i) {
    const kernels::cuda::DeviceInfo info = kernels::cuda::device_info(i);
    out.push_back({info.index, info.cc(), info.sm_count, info.memory_total_bytes,
                   info.memory_free_bytes, info.name});
  }
  return out;
}

Result<std::vector<DeviceFacts>> ask_program(const std::string& program) {
  const std::string command = fmt::format("timeout -k 1 60 '{}' devices --plain", program);
  std::FILE* pipe = popen(command.c_str(), "re");
  if (pipe == nullptr) return Error{ErrorCode::kInternal, "device.backend", command};
  std::string text;
  std::array<char, 4096> part{};
  while (const std::size_t n = std::fread(part.data(), 1, part.size(), pipe)) {
    text.append(part.data(), n);
  }
  const int status = pclose(pipe);
  if (status != 0) {
    return Error{ErrorCode::kUnavailable, "device.backend",
                 fmt::format("{} failed with status {}; set device.backend to cpu to go on without "
                             "devices",
                             command, status)};
  }
  return parse_devices(text);
}

}  // namespace millrace
