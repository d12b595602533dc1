#include "config/cluster_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "config/config_tables.h"
#include "config/yaml_reader.h"

namespace millrace {
namespace {

template <class N>
Error out_of_range(N value, const FieldSpec& spec) {
  return invalid("", fmt::format("{} is outside {}", detail::number(static_cast<double>(value)),
                                 detail::range_of(spec)));
}

bool within(double value, const FieldSpec& spec) {
  return value <= spec.max && (spec.min_exclusive ? value > spec.min : value >= spec.min);
}

// One overload per type of field: reads and checks one value, changes the member only when it is
// good.
Result<void> assign(const YAML::Node& node, const FieldSpec&, bool& member) {
  const auto value = detail::read_bool(node);
  if (!value) return value.error();
  member = *value;
  return {};
}

Result<void> assign(const YAML::Node& node, const FieldSpec& spec, double& member) {
  const auto value = detail::read_number(node);
  if (!value) return value.error();
  if (!within(*value, spec)) return out_of_range(*value, spec);
  member = *value;
  return {};
}

Result<void> assign(const YAML::Node& node, const FieldSpec&, std::string& member) {
  const auto value = detail::read_string(node);
  if (!value) return value.error();
  member = *value;
  return {};
}

Result<void> assign(const YAML::Node& node, const FieldSpec&, std::vector<std::string>& member) {
  const auto value = detail::read_strings(node);
  if (!value) return value.error();
  member = *value;
  return {};
}

template <class T>
requires std::is_integral_v<T> Result<void> assign(const YAML::Node& node, const FieldSpec& spec,
                                                   T& member) {
  const auto value = detail::read_integer(node, spec.name.ends_with("_bytes"));
  if (!value) return value.error();
  if (!within(static_cast<double>(*value), spec)) return out_of_range(*value, spec);
  member = static_cast<T>(*value);
  return {};
}

template <class E>
requires std::is_enum_v<E> Result<void> assign(const YAML::Node& node, const FieldSpec&,
                                               E& member) {
  const auto text = detail::read_string(node);
  if (!text) return text.error();
  for (const auto& [name, value] : enum_names(E{})) {
    if (*text == name) {
      member = value;
      return {};
    }
  }
  return invalid("", fmt::format("is '{}'", *text));
}

// Places of the fields that a file sets, for messages about rules between fields.
using Positions = std::map<std::string, std::string>;

struct FieldNames {
  std::vector<std::string> sections;
  std::vector<std::string> paths;
};

FieldNames all_names() {
  FieldNames names;
  const ClusterConfig config;
  ClusterConfig::sections(config, [&](std::string_view section, std::string_view, const auto&) {
    names.sections.emplace_back(section);
  });
  detail::for_each_field(config, [&](std::string_view section, const FieldSpec& spec, const auto&) {
    names.paths.push_back(detail::field_path(section, spec));
  });
  return names;
}

std::string meant(const std::string& guess) {
  return guess.empty() ? "" : fmt::format("; did you mean '{}'?", guess);
}

// The nearest field to section.name: a field of the same name in another section comes first.
std::string nearest_field(const std::string& path, const FieldNames& names) {
  const std::string leaf = path.substr(path.rfind('.') + 1);
  const std::string near = detail::nearest_name(path, names.paths);
  const bool same_section = near.substr(0, near.find('.')) == path.substr(0, path.find('.'));
  if (!near.empty() && same_section) return near;
  for (const std::string& candidate : names.paths) {
    if (candidate.substr(candidate.find('.') + 1) == leaf) return candidate;
  }
  return near;
}

enum class Found { kNo, kYes };

// Sets the field `path` from `node`.
Result<Found> set_field(ClusterConfig& config, const std::string& path, const YAML::Node& node,
                        const std::string& where) {
  Result<Found> result = Found::kNo;
  detail::for_each_field(
      config, [&](std::string_view section, const FieldSpec& spec, auto& member) {
        if (detail::field_path(section, spec) != path) return;
        const Result<void> assigned = assign(node, spec, member);
        if (assigned) {
          result = Found::kYes;
          return;
        }
        // A secret must not reach a log through a message about it.
        const std::string what = spec.secret ? "is not well formed" : assigned.error().message;
        result = invalid(path, fmt::format("{}: {} {}; allowed: {}", where, path, what,
                                           detail::allowed_values(spec, member)));
      });
  return result;
}

Error unknown_field(const std::string& path, const std::string& where, const FieldNames& names) {
  return invalid(path, fmt::format("{}: unknown field '{}'{}", where, path,
                                   meant(nearest_field(path, names))));
}

class Loader {
 public:
  Loader(ClusterConfig& config, const std::string& filename)
      : config_(config), filename_(filename) {}

  Result<void> load(const YAML::Node& root) {
    if (root.IsNull()) return {};
    if (!root.IsMap()) {
      return invalid("",
                     fmt::format("{}: the configuration must be groups of fields (model:, grid:, "
                                 "...)",
                                 detail::position_of(root, filename_)));
    }
    return each_entry(root, "",
                      [&](const std::string& name, const YAML::Node& key, const YAML::Node& value) {
                        return section(name, key, value);
                      });
  }

  const Positions& positions() const { return positions_; }

 private:
  // Calls visit(path, key, value) for the entries of a map, in order, once it knows that each key
  // is a word and occurs once; yaml-cpp itself accepts repeated keys.
  template <class Visit>
  Result<void> each_entry(const YAML::Node& map, const std::string& prefix, Visit visit) {
    std::set<std::string> seen;
    for (const auto& entry : map) {
      const std::string where = detail::position_of(entry.first, filename_);
      if (!entry.first.IsScalar()) {
        return invalid(prefix, fmt::format("{}: the name of a field must be a word", where));
      }
      const std::string path = prefix + entry.first.Scalar();
      if (!seen.insert(path).second) {
        return invalid(path, fmt::format("{}: '{}' is given twice", where, path));
      }
      if (auto visited = visit(path, entry.first, entry.second); !visited) return visited.error();
    }
    return {};
  }

  Result<void> section(const std::string& name, const YAML::Node& key, const YAML::Node& value) {
    const std::string where = detail::position_of(key, filename_);
    if (std::find(names_.sections.begin(), names_.sections.end(), name) == names_.sections.end()) {
      std::string guess = detail::nearest_name(name, names_.sections);
      const auto same =
          std::find_if(names_.paths.begin(), names_.paths.end(), [&](const auto& path) {
            return path.substr(path.find('.') + 1) == name;  // a field that lost its section
          });
      if (same != names_.paths.end()) guess = *same;
      return invalid(name, fmt::format("{}: unknown section '{}'{}", where, name, meant(guess)));
    }
    if (value.IsNull()) return {};  // "gateway:" with every field commented out
    if (!value.IsMap()) {
      return invalid(name, fmt::format("{}: '{}' must be a group of fields", where, name));
    }
    return each_entry(
        value, name + ".",
        [&](const std::string& path, const YAML::Node& field_key, const YAML::Node& field_value) {
          return field(path, field_key, field_value);
        });
  }

  Result<void> field(const std::string& path, const YAML::Node& key, const YAML::Node& value) {
    const std::string where = detail::position_of(value.IsNull() ? key : value, filename_);
    const Result<Found> found = set_field(config_, path, value, where);
    if (!found) return found.error();
    if (*found == Found::kNo) {
      return unknown_field(path, detail::position_of(key, filename_), names_);
    }
    positions_[path] = where;
    return {};
  }

  ClusterConfig& config_;
  const std::string& filename_;
  const FieldNames names_ = all_names();
  Positions positions_;
};

}  // namespace

Result<ClusterConfig> parse_cluster_config(const std::string& text, const std::string& filename,
                                           const std::vector<std::string>& overrides) {
  const auto root = detail::parse_yaml(text, filename);
  if (!root) return root.error();
  ClusterConfig config;
  Loader loader(config, filename);
  if (auto loaded = loader.load(root->root); !loaded) return loaded.error();
  Positions positions = loader.positions();
  for (const std::string& assignment : overrides) {
    if (auto applied = apply_override(config, assignment); !applied) return applied.error();
    positions[assignment.substr(0, assignment.find('='))] = "--set " + assignment;
  }
  if (auto checked = check_cluster_config(config); !checked) {
    Error error = checked.error();
    const auto position = positions.find(error.field);
    error.message = fmt::format("{}: {}", position == positions.end() ? filename : position->second,
                                error.message);
    return error;
  }
  return config;
}

Result<ClusterConfig> load_cluster_config(const std::string& path,
                                          const std::vector<std::string>& overrides) {
  std::error_code ignored;
  std::ifstream file(path);
  if (!file || std::filesystem::is_directory(path, ignored)) {
    return Error{ErrorCode::kNotFound, path, "cannot be read; give the path of a YAML file"};
  }
  std::ostringstream text;
  text << file.rdbuf();
  return parse_cluster_config(text.str(), path, overrides);
}

Result<void> apply_override(ClusterConfig& config, const std::string& assignment) {
  const std::size_t equals = assignment.find('=');
  if (equals == std::string::npos) {
    return invalid(assignment,
                   fmt::format("override '{}' must be section.field=value", assignment));
  }
  const std::string path = assignment.substr(0, equals);
  const std::string where = "--set";
  const auto value = detail::parse_yaml(assignment.substr(equals + 1), where);
  if (!value) return invalid(path, value.error().message);
  // "model.served_name=" sets an empty string.
  const YAML::Node node = value->root.IsNull() ? YAML::Node(std::string()) : value->root;
  const Result<Found> found = set_field(config, path, node, where);
  if (!found) return found.error();
  if (*found == Found::kNo) return unknown_field(path, where, all_names());
  return {};
}

}  // namespace millrace
