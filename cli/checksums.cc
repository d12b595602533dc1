#include "cli/checksums.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <thread>

namespace millrace {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kPiece = 1 << 20;
constexpr std::size_t kDigits = 64;
constexpr std::array<std::string_view, 4> kModelFiles = {".json", ".safetensors", ".jinja",
                                                         ".gguf"};

// The folder that a list's names are relative to.
fs::path folder_of(const std::string& file) {
  const fs::path parent = fs::path(file).parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

std::optional<FileSum> parse_line(const std::string& line) {
  constexpr std::string_view kHex = "0123456789abcdef";
  if (line.size() < kDigits + 3) return std::nullopt;
  FileSum sum{line.substr(kDigits + 2), line.substr(0, kDigits)};
  const bool hex = sum.sha256.find_first_not_of(kHex) == std::string::npos;
  const bool marked =
      line[kDigits] == ' ' && (line[kDigits + 1] == ' ' || line[kDigits + 1] == '*');
  if (!hex || !marked) return std::nullopt;
  sum.name = fs::path(sum.name).lexically_normal();
  return sum;
}

bool leads_out(const std::string& name) {
  const fs::path path(name);
  return path.is_absolute() || name.empty() || *path.begin() == "..";
}

std::string hex_of(std::span<const unsigned char> bytes) {
  std::string out;
  for (const unsigned char byte : bytes) out += fmt::format("{:02x}", byte);
  return out;
}

Error unreadable(const std::string& path) {
  return {ErrorCode::kNotFound, path, std::strerror(errno)};
}

// The files to compare, and what is wrong with the list itself.
struct Work {
  std::vector<FileSum> files;
  std::vector<std::string> problems;
};

Work work_of(const fs::path& model, const std::string& list, std::vector<FileSum> sums) {
  Work work;
  if (!fs::is_directory(model)) {
    const std::string name = model.filename();
    const auto it = std::ranges::find(sums, name, &FileSum::name);
    if (it == sums.end()) {
      work.problems.push_back(fmt::format("{}: is not in {}", name, list));
    } else {
      work.files.push_back(*it);
    }
    return work;
  }
  std::set<std::string> listed;
  for (const FileSum& sum : sums) listed.insert(sum.name);
  for (const fs::directory_entry& entry : fs::directory_iterator(model)) {
    const std::string name = entry.path().filename();
    const bool read = std::ranges::find(kModelFiles, entry.path().extension()) != kModelFiles.end();
    if (read && !listed.contains(name)) {
      work.problems.push_back(fmt::format("{}: is not in {}", name, list));
    }
  }
  work.files = std::move(sums);
  return work;
}

}  // namespace

Result<std::vector<FileSum>> read_sums(const std::string& path) {
  std::ifstream file(path);
  if (!file) return unreadable(path);
  std::vector<FileSum> sums;
  std::set<std::string> names;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const auto bad = [&](std::string_view what) {
      return invalid(fmt::format("{}:{}", path, number), std::string(what));
    };
    std::optional<FileSum> sum = parse_line(line);
    if (!sum) return bad("must be 64 hexadecimal digits, two blanks and a name, as of sha256sum");
    if (leads_out(sum->name)) return bad("the name leads out of the list's own folder");
    if (!names.insert(sum->name).second) return bad(sum->name + " is here twice");
    sums.push_back(std::move(*sum));
  }
  if (file.bad()) return unreadable(path);
  if (sums.empty()) return invalid(path, "names no file");
  return sums;
}

Result<std::string> sha256_of_file(const std::string& path,
                                   const std::function<void(std::uint64_t)>& progress) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return unreadable(path);
  const std::unique_ptr<const int, void (*)(const int*)> closer(&fd,
                                                                [](const int* f) { close(*f); });
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> digest(EVP_MD_CTX_new(),
                                                                       EVP_MD_CTX_free);
  std::vector<unsigned char> piece(kPiece);
  std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
  unsigned length = 0;
  bool ok = digest != nullptr && EVP_DigestInit_ex(digest.get(), EVP_sha256(), nullptr) == 1;
  while (ok) {
    const ssize_t n = read(fd, piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return unreadable(path);
    if (n == 0) break;
    ok = EVP_DigestUpdate(digest.get(), piece.data(), static_cast<std::size_t>(n)) == 1;
    progress(static_cast<std::uint64_t>(n));
  }
  ok = ok && EVP_DigestFinal_ex(digest.get(), out.data(), &length) == 1;
  if (!ok) return Error{ErrorCode::kInternal, path, "OpenSSL has no SHA-256"};
  return hex_of(std::span(out).first(length));
}

Result<SumCheck> check_sums(const std::string& model, const std::string& sums, int threads,
                            const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  Result<std::vector<FileSum>> list = read_sums(sums);
  if (!list) return list.error();
  Work work = work_of(model, sums, std::move(*list));
  const fs::path folder = folder_of(sums);
  SumCheck check{.problems = std::move(work.problems), .files = work.files.size()};
  std::uint64_t total = 0;
  for (const FileSum& file : work.files) {
    std::error_code missing;  // said when the file is read
    const std::uint64_t bytes = fs::file_size(folder / file.name, missing);
    if (!missing) total += bytes;
  }

  std::mutex mutex;
  std::atomic<std::size_t> next = 0;
  const auto run = [&] {
    for (std::size_t i = next++; i < work.files.size(); i = next++) {
      const FileSum& file = work.files[i];
      const Result<std::string> found =
          sha256_of_file(folder / file.name, [&](std::uint64_t bytes) {
            const std::lock_guard lock(mutex);
            check.bytes += bytes;
            progress(check.bytes, total);
          });
      if (found && *found == file.sha256) continue;
      const std::lock_guard lock(mutex);
      check.problems.push_back(
          found ? fmt::format("{}: is not the file that {} was made of (SHA-256 {}, listed {})",
                              file.name, sums, *found, file.sha256)
                : fmt::format("{}: {}", file.name, found.error().message));
    }
  };
  std::vector<std::thread> others;
  const int most = std::min(threads, static_cast<int>(work.files.size()));
  for (int i = 1; i < most; ++i) others.emplace_back(run);
  run();
  for (std::thread& thread : others) thread.join();
  std::ranges::sort(check.problems);
  return check;
}

}  // namespace millrace
