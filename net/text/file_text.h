// Reading a small text file of a model folder.
#pragma once

#include <filesystem>
#include <string>

#include "config/result.h"

namespace millrace::text {

// kNotFound when it cannot be opened, kInvalidArgument above 512 MiB. Errors: field is the path.
Result<std::string> read_text_file(const std::filesystem::path& path);

}  // namespace millrace::text
