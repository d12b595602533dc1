#include "worker/device_backend.h"

#include <fmt/format.h>

#include <charconv>
#include <sstream>
#include <utility>

namespace millrace {

namespace {

std::unique_ptr<DeviceBackend>& installed() {
  static std::unique_ptr<DeviceBackend> backend;
  return backend;
}

// Takes a number off the front.
template <class T>
bool take_number(std::string_view& text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

bool take(std::string_view& text, std::string_view word) {
  if (!text.starts_with(word)) return false;
  text.remove_prefix(word.size());
  return true;
}

}  // namespace

const DeviceBackend* device_backend() { return installed().get(); }

void install_device_backend(std::unique_ptr<DeviceBackend> backend) {
  installed() = std::move(backend);
}

Result<DeviceProfile> parse_device_profile(std::string_view text) {
  const std::string_view whole = text;
  DeviceProfile profile;
  int major = 0;
  int minor = 0;
  const bool numbers = take_number(text, major) && take(text, ".") && take_number(text, minor) &&
                       take(text, ":") && take_number(text, profile.sm_count) && take(text, ":") &&
                       take_number(text, profile.free_bytes);
  if (numbers && take(text, "GiB")) profile.free_bytes <<= 30;
  if (!numbers || !text.empty() || major < 1 || major > 99 || minor < 0 || minor > 9 ||
      profile.sm_count < 1 || profile.sm_count > 10'000 || profile.free_bytes > (1ULL << 50)) {
    return invalid("device.profile",
                   fmt::format("'{}' must be compute capability:multiprocessors:free memory, such "
                               "as 9.0:132:139GiB",
                               whole));
  }
  profile.compute_capability = 10 * major + minor;
  return profile;
}

std::string format_device_profile(const DeviceProfile& profile) {
  return fmt::format("{}.{}:{}:{}", profile.compute_capability / 10,
                     profile.compute_capability % 10, profile.sm_count, profile.free_bytes);
}

std::string format_devices(const std::vector<DeviceFacts>& devices) {
  std::string text;
  for (const DeviceFacts& d : devices) {
    text += fmt::format("{} {}.{} {} {} {} {}\n", d.index, d.compute_capability / 10,
                        d.compute_capability % 10, d.sm_count, d.total_bytes, d.free_bytes, d.name);
  }
  return text;
}

Result<std::vector<DeviceFacts>> parse_devices(const std::string& text) {
  std::vector<DeviceFacts> out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    DeviceFacts d;
    int major = 0;
    int minor = 0;
    char point = 0;
    words >> d.index >> major >> point >> minor >> d.sm_count >> d.total_bytes >> d.free_bytes;
    if (!words || point != '.' || d.index != static_cast<int>(out.size()) || d.sm_count <= 0) {
      return Error{ErrorCode::kInternal, "device.backend", fmt::format("'{}' is no device", line)};
    }
    std::getline(words >> std::ws, d.name);
    d.compute_capability = 10 * major + minor;
    out.push_back(std::move(d));
  }
  return out;
}

}  // namespace millrace
