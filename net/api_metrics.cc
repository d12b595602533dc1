#include "net/api_metrics.h"

#include <algorithm>

namespace millrace::net {
namespace {

struct Family {
  std::string name;
  std::string text;
  bool wanted = false;
};

// "# TYPE name ..." or "# HELP name ...": the name; else empty.
std::string_view described(std::string_view line) {
  if (!line.starts_with("# TYPE ") && !line.starts_with("# HELP ")) return {};
  line.remove_prefix(7);
  return line.substr(0, line.find(' '));
}

bool belongs(std::string_view sample, const std::string& family) {
  if (!sample.starts_with(family)) return false;
  const std::string_view rest = sample.substr(family.size());
  return rest.empty() || rest == "_bucket" || rest == "_sum" || rest == "_count" ||
         rest == "_total" || rest == "_created";
}

}  // namespace

std::string filter_metrics(std::string_view exposition, const std::vector<std::string>& names) {
  if (names.empty()) return std::string(exposition);
  const auto wanted = [&](std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  std::string out;
  Family family;
  const auto flush = [&] {
    if (family.wanted) out += family.text;
    family = {};
  };
  while (!exposition.empty()) {
    const std::size_t end = std::min(exposition.find('\n'), exposition.size() - 1) + 1;
    const std::string_view line = exposition.substr(0, end);
    exposition.remove_prefix(end);
    std::string_view name = described(line);
    if (!name.empty()) {
      if (name != family.name) flush();
      family.name = name;
    } else if (!line.starts_with('#')) {
      name = line.substr(0, line.find_first_of("{ \n"));
      if (name.empty()) continue;
      if (!belongs(name, family.name)) {
        flush();
        family.name = name;
      }
    }
    family.text += line;
    family.wanted = family.wanted || wanted(name);
  }
  flush();
  return out;
}

}  // namespace millrace::net
