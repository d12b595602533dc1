#include "monitoring/metrics_doc.h"

#include <fmt/format.h>

#include "monitoring/catalogue.h"

namespace millrace {
namespace {

std::string_view type_name(MetricType type) {
  switch (type) {
    case MetricType::kCounter:
      return "counter";
    case MetricType::kGauge:
      return "gauge";
    case MetricType::kHistogram:
      return "histogram";
  }
  return "";
}

std::string labels_of(const MetricDesc& d) {
  std::string out;
  for (const MetricLabel& label : d.labels) {
    out += fmt::format("{}`{}`", out.empty() ? "" : ", ", label.name);
    if (label.values.empty()) continue;
    out += " (";
    for (std::size_t i = 0; i < label.values.size(); ++i) {
      out += fmt::format("{}{}", i == 0 ? "" : ", ", label.values[i]);
    }
    out += ")";
  }
  return out.empty() ? "none" : out;
}

std::string buckets_of(const MetricDesc& d) {
  std::string out;
  for (const double b : d.buckets) out += fmt::format("{}{}", out.empty() ? "" : " ", b);
  return out;
}

}  // namespace

std::string metrics_markdown() {
  std::string out =
      "# Metrics\n\n"
      "Written from `monitoring/catalogue.h`; run the monitoring tests with "
      "`MILLRACE_UPDATE_DOCS=1` after a change there.\n\n"
      "Names under `vllm:` are vLLM's, with its meaning and its labels `model_name` and `engine`; "
      "there is one series per\nlogical value, all cells together. The gateway exports all "
      "of them; what happens inside\ncells reaches it with their heartbeats.\n\n"
      "| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n";
  for (const MetricDesc& d : kCatalogue) {
    out += fmt::format("| `{}` | {} | {} | {} | {} |\n", d.name, type_name(d.type), d.unit,
                       labels_of(d), d.help);
  }
  out += "\n## Buckets\n\n| name | upper bounds |\n|---|---|\n";
  for (const MetricDesc& d : kCatalogue) {
    if (d.type == MetricType::kHistogram) {
      out += fmt::format("| `{}` | {} |\n", d.name, buckets_of(d));
    }
  }
  return out;
}

}  // namespace millrace
