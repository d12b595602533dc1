#include "config/yaml_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <string_view>

namespace millrace::detail {
namespace {

constexpr std::size_t kMaxFileBytes = 1 << 20;

std::string kind_of(const YAML::Node& node) {
  switch (node.Type()) {
    case YAML::NodeType::Map:
      return "a group of fields";
    case YAML::NodeType::Sequence:
      return "a list";
    case YAML::NodeType::Scalar:
      return fmt::format("{}'{}'", node.Tag() == "!" ? "the string " : "", node.Scalar());
    default:
      return "empty";
  }
}

Error not_a(const YAML::Node& node, std::string_view wanted) {
  return invalid("", fmt::format("is {}, not {}", kind_of(node), wanted));
}

bool is_plain(const YAML::Node& node) { return node.IsScalar() && node.Tag() == "?"; }

// The whole text as a T, or nothing.
template <class T>
bool parse_all(std::string_view text, T& value) {
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size();
}

struct SizeUnit {
  std::string_view suffix;
  double factor;
};
constexpr SizeUnit kSizeUnits[] = {{"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0},
                                   {"TiB", 0x1p40}, {"KB", 1e3},        {"MB", 1e6},
                                   {"GB", 1e9},     {"TB", 1e12},       {"B", 1}};

bool parse_size(std::string_view text, std::int64_t& value) {
  for (const SizeUnit& unit : kSizeUnits) {
    if (!text.ends_with(unit.suffix)) continue;
    text.remove_suffix(unit.suffix.size());
    while (text.ends_with(' ')) text.remove_suffix(1);
    double count = 0;
    if (!parse_all(text, count) || !(std::abs(count) * unit.factor < 0x1p62)) return false;
    value = std::llround(count * unit.factor);
    return true;
  }
  return false;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

// yaml-cpp's sentence, which may quote a byte that would break the line.
std::string sentence_of(const YAML::Exception& e, const std::string& text) {
  std::string sentence = e.msg;
  for (char& c : sentence) {
    if (static_cast<unsigned char>(c) < ' ') c = '?';
  }
  std::size_t line = 0;  // where the line with the error begins
  for (int i = 0; i < e.mark.line; ++i) line = text.find('\n', line) + 1;
  const std::size_t indent = text.find_first_not_of(" \t", line) - line;
  const bool tab = std::string_view(text).substr(line, indent).find('\t') != std::string::npos;
  return tab ? sentence + "; indent with spaces, not tabs" : sentence;
}

}  // namespace

Result<YamlDocument> parse_yaml(const std::string& text, const std::string& filename) {
  if (text.size() > kMaxFileBytes) {
    return invalid("", fmt::format("{}: larger than 1 MiB, which no configuration is", filename));
  }
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    if (documents.empty()) return YamlDocument{};
    if (documents.size() > 1) {
      return invalid("", fmt::format("{}: second document (---); a configuration is one document",
                                     position_of(documents[1], filename)));
    }
    return YamlDocument{documents[0]};
  } catch (const YAML::Exception& e) {
    return invalid("", fmt::format("{}:{}:{}: not valid YAML: {}", filename, e.mark.line + 1,
                                   e.mark.column + 1, sentence_of(e, text)));
  }
}

std::string position_of(const YAML::Node& node, const std::string& filename) {
  const YAML::Mark mark = node.Mark();
  if (mark.is_null()) return filename;
  return fmt::format("{}:{}:{}", filename, mark.line + 1, mark.column + 1);
}

Result<bool> read_bool(const YAML::Node& node) {
  if (is_plain(node)) {
    if (node.Scalar() == "true") return true;
    if (node.Scalar() == "false") return false;
  }
  return not_a(node, "true or false");
}

Result<std::int64_t> read_integer(const YAML::Node& node, bool sizes) {
  std::int64_t value = 0;
  if (is_plain(node) && parse_all(node.Scalar(), value)) return value;
  if (sizes && node.IsScalar() && parse_size(node.Scalar(), value)) return value;
  return not_a(node, sizes ? "bytes or a size like 512MiB or 2GiB" : "an integer");
}

Result<double> read_number(const YAML::Node& node) {
  double value = 0;
  if (is_plain(node) && parse_all(node.Scalar(), value) && std::isfinite(value)) return value;
  return not_a(node, "a number");
}

Result<std::string> read_string(const YAML::Node& node) {
  if (node.IsScalar()) return node.Scalar();
  return not_a(node, "a string (write \"\" for none)");
}

Result<std::vector<std::string>> read_strings(const YAML::Node& node) {
  if (!node.IsSequence()) return not_a(node, "a list (write [] for none)");
  std::vector<std::string> values;
  for (const YAML::Node& entry : node) {
    const Result<std::string> value = read_string(entry);
    if (!value)
      return invalid("", fmt::format("entry {} {}", values.size() + 1, value.error().message));
    values.push_back(*value);
  }
  return values;
}

std::string nearest_name(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace millrace::detail
