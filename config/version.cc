#include "config/version.h"

namespace millrace {

constinit const std::string_view kVersion = MILLRACE_VERSION;

}  // namespace millrace
