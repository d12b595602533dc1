// The version of this build: the project's in CMakeLists.txt, and nowhere else.
#pragma once

#include <string_view>

namespace millrace {

extern const std::string_view kVersion;  // "1.2.3"

}  // namespace millrace
