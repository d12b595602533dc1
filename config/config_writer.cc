// The field tables as text: the effective configuration, default.yaml and the reference page.
#include <fmt/format.h>

#include <sstream>

#include "config/cluster_config.h"
#include "config/config_tables.h"

namespace millrace {
namespace {

constexpr std::size_t kWidth = 96;

// A double-quoted YAML scalar; the escapes are those that YAML shares with JSON.
std::string double_quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string scalar(bool value) { return value ? "true" : "false"; }
std::string scalar(double value) { return fmt::format("{}", value); }
std::string scalar(const std::string& value) { return double_quoted(value); }

std::string scalar(const std::vector<std::string>& values) {
  std::string out;
  for (const std::string& value : values) out += (out.empty() ? "" : ", ") + double_quoted(value);
  return "[" + out + "]";
}

template <class T>
requires std::is_integral_v<T> std::string scalar(T value) { return fmt::format("{}", value); }

template <class E>
requires std::is_enum_v<E> std::string scalar(E value) {
  for (const auto& [name, candidate] : enum_names(value)) {
    if (candidate == value) return std::string(name);
  }
  return "?";
}

std::string redacted(const std::string& value) { return value.empty() ? "\"\"" : "\"(secret)\""; }
std::string redacted(const std::vector<std::string>& values) {
  return scalar(std::vector<std::string>(values.size(), "(secret)"));
}
template <class T>
std::string redacted(const T&) {
  return "\"(secret)\"";
}

// 33554432 is 32MiB: people read the second.
std::string readable(const FieldSpec& spec, const std::string& text, std::int64_t value) {
  if (!spec.name.ends_with("_bytes") || value == 0) return text;
  for (const auto& [suffix, shift] : {std::pair{"GiB", 30}, {"MiB", 20}, {"KiB", 10}}) {
    if (value % (std::int64_t{1} << shift) == 0) return fmt::format("{}{}", value >> shift, suffix);
  }
  return text;
}

template <class T>
std::string written(const FieldSpec& spec, const T& value) {
  if constexpr (std::is_same_v<T, std::int64_t>)
    return readable(spec, scalar(value), value);
  else
    return scalar(value);
}

// Words of `text` in lines of at most kWidth, each behind `prefix`.
std::string wrapped(const std::string& text, const std::string& prefix) {
  std::istringstream words(text);
  std::string out;
  std::string line = prefix;
  for (std::string word; words >> word;) {
    if (line.size() + 1 + word.size() > kWidth && line != prefix) {
      out += line + "\n";
      line = prefix;
    }
    line += " " + word;
  }
  return out + line + "\n";
}

}  // namespace

std::string to_yaml(const ClusterConfig& config, bool redact) {
  std::string out;
  ClusterConfig::sections(
      config, [&](std::string_view name, std::string_view, const auto& section) {
        out += fmt::format("{}:\n", name);
        using Section = std::remove_cvref_t<decltype(section)>;
        Section::fields(section, [&](const FieldSpec& spec, const auto& member) {
          out += fmt::format("  {}: {}\n", spec.name,
                             spec.secret && redact ? redacted(member) : written(spec, member));
        });
      });
  return out;
}

std::string default_yaml() {
  std::string out =
      "# Every field of Millrace's configuration with its default. Generated from the field tables "
      "in\n"
      "# config/cluster_config.h; config_test fails when this file is stale and says how to renew "
      "it.\n"
      "# A configuration needs only the fields that it changes. Unknown fields are refused.\n"
      "# Names say the unit: _ms, _tokens, and _bytes, which also takes sizes such as 512MiB or "
      "2GiB.\n";
  const ClusterConfig config;
  ClusterConfig::sections(
      config, [&](std::string_view name, std::string_view help, const auto& section) {
        out += fmt::format("\n# {}\n{}:\n", help, name);
        using Section = std::remove_cvref_t<decltype(section)>;
        Section::fields(section, [&](const FieldSpec& spec, const auto& member) {
          std::string meaning(spec.help);
          // What a string or a switch may be shows from its value.
          if (spec.max > spec.min || std::is_enum_v<std::remove_cvref_t<decltype(member)>>) {
            meaning += fmt::format(" Allowed: {}.", detail::allowed_values(spec, member));
          }
          out += wrapped(meaning, "  #");
          out += fmt::format("  {}: {}\n", spec.name, written(spec, member));
        });
      });
  return out;
}

std::string config_reference_markdown() {
  std::string out =
      "# Configuration reference\n\n"
      "Generated from the field tables in `config/cluster_config.h`. Any field can be overridden "
      "on\n"
      "the command line with `--set section.field=value`.\n";
  const ClusterConfig config;
  ClusterConfig::sections(config, [&](std::string_view name, std::string_view help,
                                      const auto& section) {
    out +=
        fmt::format("\n## {}\n\n{}\n\n| field | default | allowed | meaning |\n|---|---|---|---|\n",
                    name, help);
    using Section = std::remove_cvref_t<decltype(section)>;
    Section::fields(section, [&](const FieldSpec& spec, const auto& member) {
      out += fmt::format("| `{}.{}` | `{}` | {} | {} |\n", name, spec.name, written(spec, member),
                         detail::allowed_values(spec, member), spec.help);
    });
  });
  return out;
}

}  // namespace millrace
