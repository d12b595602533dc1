#include "net/orted_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

namespace millrace::net {
namespace {

constexpr std::size_t kMaxWords = 256;
constexpr std::size_t kMaxBytes = 32U << 10;  // the node list of a few hundred nodes

enum class Form {
  kEnv,       // "env", the one way in which a daemon may learn who it is
  kNumber,    // decimal digits
  kContact,   // the leader's daemon: job.vpid;tcp://address,...:port
  kNodes,     // compressed list of node names
  kWords,     // component names, separated by commas, perhaps negated
  kNetworks,  // interfaces or subnets, separated by commas
  kDropped,   // concerns the leader's node only
};

struct Parameter {
  std::string_view name;
  Form form;
};

// What mpirun passes for the settings that cli/launch.cc gives it, and the interface limits that an
// operator may add. None of them names a file, a library or a program.
constexpr std::array kParameters = {
    Parameter{"ess", Form::kEnv},
    Parameter{"ess_base_jobid", Form::kNumber},
    Parameter{"ess_base_vpid", Form::kNumber},
    Parameter{"ess_base_num_procs", Form::kNumber},
    Parameter{"orte_node_regex", Form::kNodes},
    Parameter{"orte_hnp_uri", Form::kContact},
    Parameter{"btl", Form::kWords},
    Parameter{"pmix", Form::kWords},
    Parameter{"pml", Form::kWords},
    Parameter{"mpi_yield_when_idle", Form::kNumber},
    Parameter{"btl_vader_single_copy_mechanism", Form::kWords},
    Parameter{"btl_tcp_if_include", Form::kNetworks},
    Parameter{"btl_tcp_if_exclude", Form::kNetworks},
    Parameter{"oob_tcp_if_include", Form::kNetworks},
    Parameter{"oob_tcp_if_exclude", Form::kNetworks},
    Parameter{"rmaps_base_oversubscribe", Form::kNumber},
    Parameter{"rmaps_base_mapping_policy", Form::kWords},
    Parameter{"hwloc_base_binding_policy", Form::kWords},
    Parameter{"plm", Form::kDropped},
    Parameter{"plm_rsh_agent", Form::kDropped},
    Parameter{"plm_rsh_no_tree_spawn", Form::kDropped},
    Parameter{"orte_tmpdir_base", Form::kDropped},
    Parameter{"btl_vader_backing_directory", Form::kDropped},
};

constexpr std::string_view kDigits = "0123456789";
constexpr std::string_view kNodeCharacters =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._-,:@()[]";
constexpr std::string_view kNetworkCharacters =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._-,:/";
constexpr std::string_view kAddressCharacters =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._-,:%[]";
constexpr std::string_view kWordCharacters = "0123456789abcdefghijklmnopqrstuvwxyz_,:";

bool only(std::string_view text, std::string_view characters) {
  return !text.empty() && text.find_first_not_of(characters) == std::string_view::npos;
}

bool is_number(std::string_view text) { return text.size() <= 10 && only(text, kDigits); }

// "325976064.0;tcp://10.77.0.1,10.0.0.1:35781", perhaps with a further ";tcp6://[...]:port".
bool is_contact(std::string_view text) {
  const std::size_t dot = text.find('.');
  std::size_t next = text.find(';');
  if (dot == std::string_view::npos || next == std::string_view::npos || dot > next) return false;
  if (!is_number(text.substr(0, dot)) || !is_number(text.substr(dot + 1, next - dot - 1))) {
    return false;
  }
  while (next != std::string_view::npos) {
    text.remove_prefix(next + 1);
    next = text.find(';');
    std::string_view address = text.substr(0, next);
    const bool v6 = address.starts_with("tcp6://");
    if (!v6 && !address.starts_with("tcp://")) return false;
    address.remove_prefix(v6 ? 7 : 6);
    if (!only(address, kAddressCharacters)) return false;
  }
  return true;
}

bool has_form(std::string_view value, Form form) {
  switch (form) {
    case Form::kEnv:
      return value == "env";
    case Form::kNumber:
      return is_number(value);
    case Form::kContact:
      return is_contact(value);
    case Form::kNodes:
      return only(value, kNodeCharacters);
    case Form::kWords:
      return only(value.substr(value.starts_with('^') ? 1 : 0), kWordCharacters);
    case Form::kNetworks:
      return only(value, kNetworkCharacters);
    case Form::kDropped:
      return true;
  }
  return false;
}

// For messages and logs: one line, of bounded length.
std::string shown(std::string_view word) {
  std::string out;
  for (const char c : word.substr(0, 80)) out += c >= ' ' && c <= '~' ? c : '?';
  return word.size() > 80 ? out + "..." : out;
}

Error refused(std::string message) { return invalid("", std::move(message)); }

std::string trimmed(const std::string& word) {
  const std::size_t first = word.find_first_not_of(' ');
  if (first == std::string::npos) return "";
  return word.substr(first, word.find_last_not_of(' ') - first + 1);
}

std::string unquoted(const std::string& word) {
  const bool quoted = word.size() >= 2 && word.front() == '"' && word.back() == '"';
  return quoted ? word.substr(1, word.size() - 2) : word;
}

// Takes the wrapping of a plain sh away, if it is there whole.
void drop_profile(std::vector<std::string>& words) {
  static constexpr std::array<std::string_view, 8> kPrefix = {
      "(", "test", "!", "-r", "./.profile", "||", ".", "./.profile;"};
  if (words.size() <= kPrefix.size() || words.back() != ")") return;
  if (!std::equal(kPrefix.begin(), kPrefix.end(), words.begin())) return;
  words.pop_back();
  words.erase(words.begin(), words.begin() + kPrefix.size());
}

Result<void> take(OrtedCommand& command, const std::string& name, const std::string& value,
                  std::set<std::string>& seen) {
  const auto* known =
      std::find_if(kParameters.begin(), kParameters.end(),
                   [&](const Parameter& parameter) { return parameter.name == name; });
  if (known == kParameters.end()) {
    return refused(fmt::format("parameter '{}' is not one that a node agent accepts", shown(name)));
  }
  if (!has_form(value, known->form)) {
    return refused(fmt::format("'{}' is no value for {}", shown(value), name));
  }
  if (!seen.insert(name).second) return refused(fmt::format("{} is given twice", name));
  if (known->form != Form::kDropped) command.parameters.emplace_back(name, value);
  return {};
}

}  // namespace

Result<OrtedCommand> parse_orted_command(std::span<const std::string> given) {
  std::vector<std::string> words;
  std::size_t bytes = 0;
  for (const std::string& word : given) {
    bytes += word.size();
    if (std::string one = trimmed(word); !one.empty()) words.push_back(std::move(one));
  }
  if (words.size() > kMaxWords || bytes > kMaxBytes) return refused("the command is too long");
  drop_profile(words);
  if (words.empty()) return refused("the command is empty");
  if (words[0] != "orted") {
    return refused(fmt::format("only Open MPI's daemon by its plain name is started, not '{}'",
                               shown(words[0])));
  }
  OrtedCommand command;
  std::set<std::string> seen;
  for (std::size_t i = 1; i < words.size(); ++i) {
    if (words[i] == "--daemonize") continue;  // it would escape whoever has to end it
    if (words[i] != "-mca" && words[i] != "--mca") {
      return refused(fmt::format("option '{}' is not accepted", shown(words[i])));
    }
    if (i + 2 >= words.size()) return refused("the last parameter has no value");
    if (auto taken = take(command, words[i + 1], unquoted(words[i + 2]), seen); !taken) {
      return taken.error();
    }
    i += 2;
  }
  for (const char* needed :
       {"ess", "ess_base_jobid", "ess_base_vpid", "ess_base_num_procs", "orte_hnp_uri"}) {
    if (!seen.contains(needed)) return refused(fmt::format("{} is missing", needed));
  }
  return command;
}

std::vector<std::string> OrtedCommand::arguments(const std::string& scratch,
                                                 const std::string& fork_agent) const {
  std::vector<std::string> all{"orted"};
  const auto add = [&all](const std::string& name, const std::string& value) {
    all.insert(all.end(), {"--mca", name, value});
  };
  for (const auto& [name, value] : parameters) add(name, value);
  add("orte_tmpdir_base", scratch);
  add("btl_vader_backing_directory", scratch);
  if (!fork_agent.empty()) add("orte_fork_agent", fork_agent);
  return all;
}

namespace {

std::string value_of(const OrtedCommand& command, std::string_view wanted) {
  for (const auto& [name, value] : command.parameters) {
    if (name == wanted) return value;
  }
  return "";
}

}  // namespace

// The list begins with the leader: "alpha,beta@0(2)", or "node[1:1-4]@0(4)" where names are alike.
std::string OrtedCommand::leader() const {
  const std::string nodes = value_of(*this, "orte_node_regex");
  const std::size_t end = nodes.find_first_of(",@[");
  return end == std::string::npos || nodes[end] == '[' ? "" : nodes.substr(0, end);
}

std::string OrtedCommand::number() const { return value_of(*this, "ess_base_vpid"); }

}  // namespace millrace::net
