// The log of a process: lines on standard error, as logging.level and logging.format say.
#pragma once

#include "config/cluster_config.h"

namespace millrace {

void set_up_logging(const LoggingSection& logging);

}  // namespace millrace
