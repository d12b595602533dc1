#include "config/cluster_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <ostream>
#include <set>
#include <sstream>

namespace millrace {
namespace {

using testing::HasSubstr;

ClusterConfig parsed(const std::string& text) {
  const auto config = parse_cluster_config(text, "test.yaml");
  EXPECT_TRUE(config) << config.error().to_string();
  return config ? *config : ClusterConfig{};
}

Error refused(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const auto config = parse_cluster_config(text, "test.yaml", overrides);
  EXPECT_FALSE(config) << "accepted: " << text;
  return config ? Error{} : config.error();
}

TEST(ClusterConfigTest, EmptyTextsGiveTheDefaults) {
  for (const char* text : {"", "\n", "# nothing\n", "{}", "gateway:\n", "---\n"}) {
    EXPECT_EQ(to_yaml(parsed(text)), to_yaml(ClusterConfig{})) << text;
  }
}

TEST(ClusterConfigTest, DefaultsPassTheirOwnRules) {
  EXPECT_TRUE(check_cluster_config(ClusterConfig{}));
}

TEST(ClusterConfigTest, ReadsEveryKindOfValue) {
  const ClusterConfig c = parsed(R"(
model: {path: /models/lfm2, prefault: false}
grid: {stages: 2, isa: avx2, embedded: false}
cache:
  memory_bytes: 2GiB
  memory_fraction: 0.25
  kv_dtype: f32
gateway:
  port: 8080
  api_keys: [first, "second key"]
  max_body_bytes: "1.5 MiB"
  overload_status: 429
cell:
  gateways: ["10.0.0.1:8001", "[::1]:9000"]
  hosts:
    - node-a:4
    - node-b
logging: {level: debug, format: json}
)");
  EXPECT_EQ(c.model.path, "/models/lfm2");
  EXPECT_FALSE(c.model.prefault);
  EXPECT_EQ(c.grid.stages, 2);
  EXPECT_EQ(c.grid.isa, Isa::kAvx2);
  EXPECT_EQ(c.cache.memory_bytes, 2147483648LL);
  EXPECT_EQ(c.cache.memory_fraction, 0.25);
  EXPECT_EQ(c.cache.kv_dtype, KvDtype::kF32);
  EXPECT_EQ(c.gateway.port, 8080);
  EXPECT_EQ(c.gateway.api_keys, (std::vector<std::string>{"first", "second key"}));
  EXPECT_EQ(c.gateway.max_body_bytes, 1572864);
  EXPECT_EQ(c.gateway.overload_status, OverloadStatus::k429);
  EXPECT_EQ(c.cell.hosts, (std::vector<std::string>{"node-a:4", "node-b"}));
  EXPECT_EQ(c.logging.level, LogLevel::kDebug);
  EXPECT_EQ(c.logging.format, LogFormat::kJson);
  EXPECT_EQ(c.grid.lanes, 1) << "what is absent keeps its default";
}

TEST(ClusterConfigTest, ReadsSizesInBothSystems) {
  const auto bytes = [](const std::string& size) {
    return parsed("cache: {memory_bytes: " + size + "}").cache.memory_bytes;
  };
  EXPECT_EQ(bytes("4096"), 4096);
  EXPECT_EQ(bytes("4096B"), 4096);
  EXPECT_EQ(bytes("3KiB"), 3072);
  EXPECT_EQ(bytes("3KB"), 3000);
  EXPECT_EQ(bytes("0.5GiB"), 536870912);
  EXPECT_EQ(bytes("1TB"), 1000000000000);
}

struct Refusal {
  std::string text;
  std::string field;
  std::string message;  // part of it
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.field; }

class ClusterConfigRefusalTest : public testing::TestWithParam<Refusal> {};

TEST_P(ClusterConfigRefusalTest, NamesThePlaceTheFieldAndTheFix) {
  const Error error = refused(GetParam().text);
  EXPECT_EQ(error.code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(error.field, GetParam().field);
  EXPECT_THAT(error.message, HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ClusterConfigRefusalTest,
    testing::Values(
        // Unknown names, with the nearest known one.
        Refusal{"gateway:\n  prot: 1\n", "gateway.prot",
                "test.yaml:2:3: unknown field 'gateway.prot'; did you mean 'gateway.port'?"},
        Refusal{"gatway:\n  port: 1\n", "gatway",
                "test.yaml:1:1: unknown section 'gatway'; did you mean 'gateway'?"},
        Refusal{"# x\nstages: 2\n", "stages",
                "test.yaml:2:1: unknown section 'stages'; did you mean 'grid.stages'?"},
        Refusal{"port: 8000\n", "port", "did you mean 'gateway.port'?"},
        Refusal{"scheduler:\n  block_tokens: 8\n", "scheduler.block_tokens",
                "did you mean 'cache.block_tokens'?"},
        Refusal{"gateway: {zzzzzzzzzzzz: 1}", "gateway.zzzzzzzzzzzz",
                "test.yaml:1:11: unknown field 'gateway.zzzzzzzzzzzz'"},
        // Wrong types.
        Refusal{
            "grid:\n  stages: two\n", "grid.stages",
            "test.yaml:2:11: grid.stages is 'two', not an integer; allowed: an integer in [1, 64]"},
        Refusal{"grid: {stages: 1.5}", "grid.stages", "not an integer"},
        Refusal{"grid: {stages: \"2\"}", "grid.stages", "the string '2', not an integer"},
        Refusal{"grid: {stages: }", "grid.stages", "is empty, not an integer"},
        Refusal{"grid: {embedded: yes}", "grid.embedded", "is 'yes', not true or false"},
        Refusal{"gateway: {api_keys: key}", "gateway.api_keys", "allowed: a list of strings"},
        Refusal{"gateway: {cors_origins: [a, [b]]}", "gateway.cors_origins",
                "entry 2 is a list, not a string"},
        Refusal{"model: {path: [a]}", "model.path", "is a list, not a string"},
        Refusal{"cache: {memory_bytes: 2 GIB}", "cache.memory_bytes", "a size like 512MiB or 2GiB"},
        Refusal{"cache: {memory_bytes: 1e30GiB}", "cache.memory_bytes", "a size like"},
        Refusal{"cache: {memory_fraction: nan}", "cache.memory_fraction", "not a number"},
        Refusal{"gateway: {queue_timeout_ms: 5s}", "gateway.queue_timeout_ms",
                "allowed: milliseconds in [1, 86400000]"},
        Refusal{"grid: 3", "grid", "must be a group of fields"},
        Refusal{"- grid", "", "test.yaml:1:1: the configuration must be groups of fields"},
        Refusal{"{[a]: 1}", "", "must be a word"},
        // Out of range.
        Refusal{"gateway: {max_queued_requests: 0}", "gateway.max_queued_requests",
                "0 is outside [1, "},
        Refusal{"gateway: {port: 65536}", "gateway.port", "65536 is outside [0, 65535]"},
        Refusal{"grid: {stages: 0}", "grid.stages", "0 is outside [1, 64]"},
        Refusal{"grid: {stages: 99999999999999999999}", "grid.stages", "not an integer"},
        Refusal{"grid: {stages: -1}", "grid.stages", "-1 is outside"},
        Refusal{"cache: {memory_fraction: 0}", "cache.memory_fraction", "0 is outside (0, 0.98]"},
        Refusal{"cache: {memory_bytes: -1KiB}", "cache.memory_bytes", "-1024 is outside"},
        // Enumerations.
        Refusal{"grid: {isa: neon}", "grid.isa",
                "grid.isa is 'neon'; allowed: one of auto, avx512_amx, avx512, avx2, portable, "
                "reference"},
        Refusal{"gateway: {overload_status: 500}", "gateway.overload_status", "one of 503, 429"},
        // Twice.
        Refusal{"gateway: {port: 1, port: 2}", "gateway.port",
                "test.yaml:1:20: 'gateway.port' is given twice"},
        Refusal{"grid: {}\ngrid: {}\n", "grid", "test.yaml:2:1: 'grid' is given twice"},
        // Not YAML, or too much of it.
        Refusal{"gateway: {port: 1", "", "not valid YAML"},
        Refusal{"a: b: c", "", "test.yaml:1:5: not valid YAML"},
        Refusal{"grid:\n\tstages: 1\n", "", "indent with spaces, not tabs"},
        Refusal{"grid:\n  stages: \"\\\x02\"", "", "unknown escape character: ?"},
        Refusal{"grid: {}\n---\ngrid: {}\n", "", "second document"},
        Refusal{std::string(1 << 21, '#'), "", "larger than 1 MiB"},
        // Rules between fields carry the place of the field that has to change.
        Refusal{
            "deadlines:\n  heartbeat_limit_ms: 1500\n", "deadlines.heartbeat_limit_ms",
            "test.yaml:2:23: 1500 must be at least twice deadlines.heartbeat_interval_ms, 1000"},
        Refusal{"deadlines: {heartbeat_interval_ms: 2000}", "deadlines.heartbeat_limit_ms",
                "test.yaml: 3000 must be at least twice"},
        Refusal{"deadlines: {step_ms: 100}", "deadlines.collective_ms",
                "at most deadlines.step_ms, 100"},
        Refusal{"{grid: {stages: 2}, scheduler: {async: always}}", "scheduler.async",
                "always needs grid.stages 1, not 2"},
        Refusal{"scheduler: {prefill_chunk_tokens: 1024}", "scheduler.prefill_chunk_tokens",
                "at most scheduler.max_step_tokens, 512"},
        Refusal{"cache: {max_sequences: 4096}", "scheduler.max_step_tokens",
                "every running sequence"},
        Refusal{"cache: {kv_tokens: 32}", "cache.kv_tokens", "at least two blocks, 64 tokens"},
        Refusal{"cache: {kv_tokens: 640, max_context_tokens: 641}", "cache.max_context_tokens",
                "at most cache.kv_tokens, 640"},
        Refusal{"device: {indices: [\"0\", one]}", "device.indices",
                "'one' must be a device's index"},
        Refusal{"device: {indices: [\"1\", \"1\"]}", "device.indices", "device.ranks_per_device"},
        Refusal{"device: {backend: cpu}\ncache: {kv_dtype: fp8}\n", "cache.kv_dtype",
                "fp8 needs device.backend cuda"},
        Refusal{"device: {backend: cuda}\ncache: {kv_dtype: f32}\n", "cache.kv_dtype",
                "f32 needs device.backend cpu"},
        Refusal{"cell: {index: 1}", "cell.index", "below grid.cells, 1"},
        Refusal{"grid: {bind_threads: socket}", "grid.bind_threads", "core"},
        Refusal{"cell: {restart_backoff_max_ms: 100}", "cell.restart_backoff_max_ms", "at least"},
        Refusal{"gateway: {port: 8001}", "gateway.cell_port", "8001 is already gateway.port"},
        Refusal{"gateway: {guard_metrics: true}", "gateway.guard_metrics",
                "needs gateway.api_keys"},
        Refusal{"gateway: {api_keys: [\"\"]}", "gateway.api_keys", "open the API to all"},
        Refusal{"cell: {gateways: [\"host\"]}", "cell.gateways", "'host' must be host:port"},
        Refusal{"cell: {gateways: [\"::1:80\"]}", "cell.gateways", "IPv6 address in brackets"},
        Refusal{"cell: {hosts: [a:0]}\ngrid: {embedded: false}", "cell.hosts",
                "host or host:workers"},
        Refusal{"cell: {hosts: [a, a:2]}\ngrid: {embedded: false}", "cell.hosts", "listed twice"},
        Refusal{"cell: {hosts: [a]}\ngrid: {embedded: true}", "cell.hosts", "cannot be embedded"}));

TEST(ClusterConfigTest, DeepNestingIsRefusedAndDoesNotCrash) {
  std::string text = "grid: ";
  for (int i = 0; i < 100000; ++i) text += '[';
  EXPECT_THAT(refused(text).message, HasSubstr("not valid YAML"));
}

TEST(ClusterConfigTest, ASecretDoesNotReachMessagesOrDumps) {
  EXPECT_THAT(refused("gateway: {api_keys: hunter2}").message, testing::Not(HasSubstr("hunter2")));
  const ClusterConfig config = parsed("gateway: {api_keys: [hunter2]}");
  EXPECT_THAT(to_yaml(config), testing::Not(HasSubstr("hunter2")));
  EXPECT_THAT(to_yaml(config), HasSubstr("(secret)"));
  EXPECT_THAT(to_yaml(config, false), HasSubstr("hunter2"));
}

TEST(ClusterConfigTest, OverridesWinAndAreCheckedTogether) {
  const auto config = parse_cluster_config(
      "gateway: {port: 8080}", "test.yaml",
      {"gateway.port=9090", "cache.memory_bytes=1GiB",
       "model.served_name=", "cell.gateways=[a:1, b:2]", "deadlines.heartbeat_interval_ms=2000",
       "deadlines.heartbeat_limit_ms=4000", "model.path=a=b"});
  ASSERT_TRUE(config) << config.error().to_string();
  EXPECT_EQ(config->gateway.port, 9090);
  EXPECT_EQ(config->cache.memory_bytes, 1 << 30);
  EXPECT_EQ(config->cell.gateways.size(), 2U);
  EXPECT_EQ(config->model.path, "a=b");

  EXPECT_THAT(refused("", {"gateway.prot=1"}).message, HasSubstr("did you mean 'gateway.port'?"));
  EXPECT_THAT(refused("", {"gateway.port"}).message, HasSubstr("section.field=value"));
  EXPECT_THAT(refused("", {"gateway.port=x"}).message, HasSubstr("--set: gateway.port is 'x'"));
  EXPECT_THAT(refused("", {"gateway.port="}).message, HasSubstr("not an integer"));
  EXPECT_THAT(refused("", {"gateway.port={"}).message, HasSubstr("not valid YAML"));
  const Error rule = refused("", {"deadlines.heartbeat_limit_ms=10000", "deadlines.step_ms=5"});
  EXPECT_EQ(rule.field, "deadlines.collective_ms");
}

// Each field is set to something else and must survive a dump and a load: no field is forgotten by
// the writer, the loader or the overrides.
TEST(ClusterConfigTest, EveryFieldSurvivesADump) {
  int fields = 0;
  const ClusterConfig defaults;
  ClusterConfig::sections(defaults, [&](std::string_view section, std::string_view, const auto& s) {
    using Section = std::remove_cvref_t<decltype(s)>;
    Section::fields(s, [&](const FieldSpec& spec, const auto& member) {
      using T = std::remove_cvref_t<decltype(member)>;
      std::string value;
      if constexpr (std::is_same_v<T, bool>) {
        value = member ? "false" : "true";
      } else if constexpr (std::is_enum_v<T>) {
        const auto names = enum_names(member);
        value = names[0].second == member ? names[1].first : names[0].first;
      } else if constexpr (std::is_arithmetic_v<T>) {
        const double other = member == spec.max ? spec.min : spec.max;
        std::ostringstream out;
        out.precision(17);
        out << other;
        value = out.str();
      } else if constexpr (std::is_same_v<T, std::string>) {
        value = "'other \" \\ value'";
      } else {
        value = "['1.2.3.4:5', 'x']";
      }
      ClusterConfig changed;
      const std::string path = std::string(section) + "." + std::string(spec.name);
      const auto applied = apply_override(changed, path + "=" + value);
      ASSERT_TRUE(applied) << applied.error().to_string();
      const std::string dump = to_yaml(changed, false);
      EXPECT_NE(dump, to_yaml(defaults, false)) << path;
      ClusterConfig again;  // load without the rules between fields, which single changes may break
      std::istringstream lines(dump);
      std::string group;
      for (std::string line; std::getline(lines, line);) {
        const std::size_t colon = line.find(':');
        if (!line.starts_with(' ')) {
          group = line.substr(0, colon);
          continue;
        }
        const std::string assignment =
            group + "." + line.substr(2, colon - 2) + "=" + line.substr(colon + 2);
        const auto set = apply_override(again, assignment);
        ASSERT_TRUE(set) << assignment << ": " << set.error().to_string();
      }
      EXPECT_EQ(to_yaml(again, false), dump) << path;
      ++fields;
    });
  });
  EXPECT_GT(fields, 50);
}

TEST(ClusterConfigTest, DumpLoadsAsAFile) {
  ClusterConfig config;
  config.model.path = "/a b/\"quoted\"\n\x01";
  config.gateway.cors_origins = {"*", "http://x"};
  config.cache.memory_fraction = 0.1;
  EXPECT_EQ(to_yaml(parsed(to_yaml(config, false)), false), to_yaml(config, false));
}

TEST(ClusterConfigTest, NamesHelpAndRangesAreSound) {
  std::set<std::string> names;
  const ClusterConfig defaults;
  ClusterConfig::sections(
      defaults, [&](std::string_view section, std::string_view help, const auto& s) {
        EXPECT_TRUE(help.ends_with('.')) << section;
        using Section = std::remove_cvref_t<decltype(s)>;
        Section::fields(s, [&](const FieldSpec& spec, const auto& member) {
          const std::string path = std::string(section) + "." + std::string(spec.name);
          EXPECT_TRUE(names.insert(path).second) << path;
          EXPECT_TRUE(spec.help.ends_with('.')) << path;
          EXPECT_EQ(spec.help.find("|"), std::string_view::npos)
              << path << " breaks the reference table";
          using T = std::remove_cvref_t<decltype(member)>;
          if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
            EXPECT_LT(spec.min, spec.max) << path << " has no range";
            EXPECT_GE(static_cast<double>(member), spec.min) << path;
            EXPECT_LE(static_cast<double>(member), spec.max) << path;
            if constexpr (std::is_same_v<T, std::int32_t>) {
              EXPECT_LE(spec.max, 2147483647.0) << path;
            }
          }
        });
      });
}

std::string slurp(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(DefaultYamlTest, IsCurrentAndLoads) {
  const std::string path = MILLRACE_SOURCE_DIR "/config/default.yaml";
  if (std::getenv("MILLRACE_UPDATE_GENERATED") != nullptr) {
    std::ofstream(path) << default_yaml();
  }
  EXPECT_EQ(slurp(path), default_yaml())
      << "stale: run MILLRACE_UPDATE_GENERATED=1 config_test --gtest_filter=DefaultYamlTest.*";
  const auto loaded = load_cluster_config(path);
  ASSERT_TRUE(loaded) << loaded.error().to_string();
  EXPECT_EQ(to_yaml(*loaded), to_yaml(ClusterConfig{}));
}

TEST(ConfigReferenceTest, HasARowForEachField) {
  const std::string page = config_reference_markdown();
  EXPECT_THAT(page, HasSubstr("| `gateway.port` | `8000` | an integer in [0, 65535] |"));
  EXPECT_THAT(page, HasSubstr("| `gateway.max_body_bytes` | `32MiB` | a size in"));
}

TEST(LoadClusterConfigTest, NamesAFileThatCannotBeRead) {
  const auto config = load_cluster_config("/nonexistent/millrace.yaml");
  ASSERT_FALSE(config);
  EXPECT_EQ(config.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(config.error().field, "/nonexistent/millrace.yaml");
  EXPECT_FALSE(load_cluster_config(testing::TempDir())) << "a folder";
}

TEST(LoadClusterConfigTest, AcceptsAnEmptyFile) {
  const std::string path = testing::TempDir() + "/empty.yaml";
  std::ofstream(path).close();
  EXPECT_TRUE(load_cluster_config(path));
}

TEST(ApiKeysTest, ComeFromTheFieldAndTheFile) {
  const std::string path = testing::TempDir() + "/keys.txt";
  std::ofstream(path) << "# team keys\nalpha\r\n\nbeta\n";
  GatewaySection gateway;
  gateway.api_keys = {"inline"};
  gateway.api_keys_file = path;
  EXPECT_EQ(*load_api_keys(gateway), (std::vector<std::string>{"inline", "alpha", "beta"}));
  std::ofstream(path) << "# none\n";
  EXPECT_FALSE(load_api_keys(gateway)) << "an empty key file must not open the API";
  gateway.api_keys_file = "/nonexistent";
  EXPECT_FALSE(load_api_keys(gateway));
}

TEST(HostPortTest, Parses) {
  EXPECT_EQ(*parse_host_port("h:80", "f"), (HostPort{"h", 80}));
  EXPECT_EQ(*parse_host_port("[::1]:65535", "f"), (HostPort{"::1", 65535}));
  for (const char* bad :
       {"", ":", "h", "h:", ":80", "h:0", "h:65536", "h:8x", "[]:1", "a b:1", "h:-1"}) {
    EXPECT_FALSE(parse_host_port(bad, "f")) << bad;
  }
}

}  // namespace
}  // namespace millrace
