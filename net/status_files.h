// The files of net/status_page, compiled into the binary by net/embed_files.cmake.
#pragma once

#include <span>
#include <string_view>

namespace millrace::net {

struct StatusFile {
  std::string_view name;          // "index.html"
  std::string_view content_type;  // with its charset
  std::string_view etag;          // quoted; changes with the bytes
  std::string_view body;
};

// In the order of their names.
std::span<const StatusFile> status_files();

}  // namespace millrace::net
