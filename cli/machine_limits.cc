#include "cli/machine_limits.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>
#include <thread>
#include <vector>

namespace millrace {

namespace {

namespace fs = std::filesystem;

// A file's first word as a number; nullopt for "max", -1 and what is no number.
std::optional<std::uint64_t> number(const std::string& word) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc() || end != word.data() + word.size()) return std::nullopt;
  return value;
}

std::optional<std::uint64_t> read_number(const fs::path& path) {
  std::ifstream file(path);
  std::string word;
  if (!(file >> word)) return std::nullopt;
  return number(word);
}

// The number behind `key` in lines of "key number" or "key: number kB"; 0 when it is not there.
std::uint64_t read_field(const fs::path& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    std::uint64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return 0;
}

// A group, and where a process is in it.
struct Hierarchy {
  fs::path mount;
  fs::path group;  // "/" in a container with a namespace of its own
  bool v2 = true;
};

// Of the memory or cpu controller.
std::optional<Hierarchy> find_hierarchy(const fs::path& root, std::string_view controller) {
  std::ifstream file(root / "proc/self/cgroup");
  std::optional<Hierarchy> unified;
  for (std::string line; std::getline(file, line);) {  // "4:cpu,cpuacct:/path", "0::/path"
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    const fs::path group = line.substr(second + 1);
    std::istringstream list(names);
    for (std::string name; std::getline(list, name, ',');) {
      if (name == controller) return Hierarchy{root / "sys/fs/cgroup" / names, group, false};
    }
    if (names.empty()) unified = Hierarchy{root / "sys/fs/cgroup", group, true};
  }
  return unified;
}

// The group's folder and those of all groups above it. In a container without a namespace of its
// own the path is the host's, and only the mount itself is there.
std::vector<fs::path> folders(const Hierarchy& at) {
  std::vector<fs::path> all;
  fs::path below = at.group.relative_path();
  while (!below.empty()) {
    all.push_back(at.mount / below);
    below = below.parent_path();
  }
  all.push_back(at.mount);
  return all;
}

// What a group's limit leaves. Cached file pages that the kernel would give up first are free.
std::optional<std::uint64_t> memory_left(const fs::path& folder, bool v2) {
  const auto limit = read_number(folder / (v2 ? "memory.max" : "memory.limit_in_bytes"));
  if (!limit) return std::nullopt;
  const auto used = read_number(folder / (v2 ? "memory.current" : "memory.usage_in_bytes"));
  const std::uint64_t cached =
      read_field(folder / "memory.stat", v2 ? "inactive_file" : "total_inactive_file");
  const std::uint64_t held = used.value_or(0) - std::min(cached, used.value_or(0));
  return *limit - std::min(held, *limit);
}

// Whole cores of a group's quota, at least one.
std::optional<int> cores_of_quota(const fs::path& folder, bool v2) {
  std::optional<std::uint64_t> quota;
  std::optional<std::uint64_t> period;
  if (v2) {
    std::ifstream file(folder / "cpu.max");
    std::string first;
    std::string second;
    if (!(file >> first >> second)) return std::nullopt;
    quota = number(first);
    period = number(second);
  } else {
    quota = read_number(folder / "cpu.cfs_quota_us");  // -1: none
    period = read_number(folder / "cpu.cfs_period_us");
  }
  if (!quota || !period || *period == 0) return std::nullopt;
  const std::uint64_t cores = std::max<std::uint64_t>(1, *quota / *period);
  return static_cast<int>(std::min<std::uint64_t>(cores, std::numeric_limits<int>::max()));
}

int cores_of_affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return std::numeric_limits<int>::max();  // more cores than a cpu_set_t knows
}

}  // namespace

MachineLimits measure_machine(const std::string& root) {
  MachineLimits limits;
  limits.memory_bytes = read_field(fs::path(root) / "proc/meminfo", "MemAvailable:") * 1024;
  limits.memory_source = "the machine";
  limits.cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  limits.cores_source = "the machine";
  if (const int allowed = cores_of_affinity(); allowed < limits.cores) {
    limits.cores = allowed;
    limits.cores_source = "the affinity";
  }
  if (const auto at = find_hierarchy(root, "memory")) {
    for (const fs::path& folder : folders(*at)) {
      const auto left = memory_left(folder, at->v2);
      if (!left || (limits.memory_bytes != 0 && *left >= limits.memory_bytes)) continue;
      limits.memory_bytes = *left;
      limits.memory_source = at->v2 ? "cgroup memory.max" : "cgroup memory.limit_in_bytes";
    }
  }
  if (const auto at = find_hierarchy(root, "cpu")) {
    for (const fs::path& folder : folders(*at)) {
      const auto cores = cores_of_quota(folder, at->v2);
      if (!cores || *cores >= limits.cores) continue;
      limits.cores = *cores;
      limits.cores_source = at->v2 ? "cgroup cpu.max" : "cgroup cpu.cfs_quota_us";
    }
  }
  return limits;
}

}  // namespace millrace
