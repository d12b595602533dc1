// The name[] filter of /metrics, as Prometheus client libraries offer it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace millrace::net {

// Keeps the families of a Prometheus text exposition that are named, by the family's own name or by
// the name of one of its samples ("x_seconds" or "x_seconds_bucket"); a family is kept whole. No
// names: everything.
std::string filter_metrics(std::string_view exposition, const std::vector<std::string>& names);

}  // namespace millrace::net
