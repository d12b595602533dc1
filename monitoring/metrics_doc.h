// The reference of all metrics as Markdown, written from the catalogue. monitoring/metrics.md is
// this text; a test fails when it is stale, and MILLRACE_UPDATE_DOCS=1 makes that test write it.
#pragma once

#include <string>

namespace millrace {

std::string metrics_markdown();

}  // namespace millrace
