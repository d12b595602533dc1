// Internal to config: what the field tables of cluster_config.h are turned into. One FieldView per
// field, so that loader, writer and overrides are ordinary loops.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "config/cluster_config.h"
#include "config/yaml_reader.h"

namespace millrace::detail {

// Every field of one ClusterConfig, in the order of the file.
template <class Config, class Visitor>
void for_each_field(Config& config, Visitor&& visit) {
  ClusterConfig::sections(config, [&](std::string_view section, std::string_view, auto& values) {
    using Section = std::remove_const_t<std::remove_reference_t<decltype(values)>>;
    Section::fields(values,
                    [&](const FieldSpec& spec, auto& member) { visit(section, spec, member); });
  });
}

inline std::string field_path(std::string_view section, const FieldSpec& spec) {
  return fmt::format("{}.{}", section, spec.name);
}

// A number without a fraction is written without a point, whatever its type.
inline std::string number(double value) {
  if (std::abs(value) < 1e18 && value == std::floor(value)) {
    return fmt::format("{}", static_cast<long long>(value));
  }
  return fmt::format("{}", value);
}

inline std::string range_of(const FieldSpec& spec) {
  return fmt::format("{}{}, {}]", spec.min_exclusive ? '(' : '[', number(spec.min),
                     number(spec.max));
}

template <class T>
constexpr bool is_list = std::is_same_v<T, std::vector<std::string>>;

// "an integer in [0, 65535]", "one of auto, avx2", ...: for messages and for the reference.
template <class T>
std::string allowed_values(const FieldSpec& spec, const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return "true or false";
  } else if constexpr (std::is_enum_v<T>) {
    std::string names;
    for (const auto& [name, unused] : enum_names(value)) {
      if (!names.empty()) names += ", ";
      names += name;
    }
    return "one of " + names;
  } else if constexpr (std::is_integral_v<T>) {
    const std::string_view what = spec.name.ends_with("_bytes")    ? "a size"
                                  : spec.name.ends_with("_ms")     ? "milliseconds"
                                  : spec.name.ends_with("_tokens") ? "tokens"
                                                                   : "an integer";
    return fmt::format("{} in {}", what, range_of(spec));
  } else if constexpr (std::is_floating_point_v<T>) {
    return fmt::format("a number in {}", range_of(spec));
  } else if constexpr (is_list<T>) {
    return "a list of strings";
  } else {
    return "a string";
  }
}

}  // namespace millrace::detail
