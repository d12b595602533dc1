// The whole configuration of Millrace as one tree of plain values, and its only loader.
//
// Each section is a struct whose members carry the defaults, followed by fields(): the table that
// gives every member its range and meaning, once. Parsing, checking, overrides,
// config/default.yaml, the dump of the effective configuration and the reference page are all
// driven by these tables (config/config_tables.h) and so cannot drift apart. Nothing else reads
// YAML or the environment.
//
// Everything here is a value; nothing is shared between threads.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "config/config_field.h"
#include "config/result.h"

namespace millrace {

enum class Isa : std::uint8_t { kAuto, kAvx512Amx, kAvx512, kAvx2, kPortable, kReference };
enum class KvDtype : std::uint8_t { kF32, kBf16, kFp8 };
enum class CpuWeights : std::uint8_t { kAuto, kMapped, kP4, kP8 };
enum class BindThreads : std::uint8_t { kAuto, kNone, kNode, kCore };
enum class DeviceChoice : std::uint8_t { kAuto, kCpu, kCuda };
enum class DeviceWeightFormat : std::uint8_t { kBf16, kFp8 };
enum class DeviceTransport : std::uint8_t { kAuto, kNccl, kStaged };
enum class ExchangeChoice : std::uint8_t { kAuto, kFixed, kExact, kAllGather };
enum class AsyncSteps : std::uint8_t { kAuto, kAlways, kNever };
enum class OverloadStatus : std::uint16_t { k503 = 503, k429 = 429 };
enum class LogLevel : std::uint8_t { kTrace, kDebug, kInfo, kWarn, kError };
enum class LogFormat : std::uint8_t { kText, kJson };

inline constexpr EnumNames<Isa, 6> enum_names(Isa) {
  return {{{"auto", Isa::kAuto},
           {"avx512_amx", Isa::kAvx512Amx},
           {"avx512", Isa::kAvx512},
           {"avx2", Isa::kAvx2},
           {"portable", Isa::kPortable},
           {"reference", Isa::kReference}}};
}
inline constexpr EnumNames<KvDtype, 3> enum_names(KvDtype) {
  return {{{"f32", KvDtype::kF32}, {"bf16", KvDtype::kBf16}, {"fp8", KvDtype::kFp8}}};
}
inline constexpr EnumNames<CpuWeights, 4> enum_names(CpuWeights) {
  return {{{"auto", CpuWeights::kAuto},
           {"mapped", CpuWeights::kMapped},
           {"p4", CpuWeights::kP4},
           {"p8", CpuWeights::kP8}}};
}
inline constexpr EnumNames<BindThreads, 4> enum_names(BindThreads) {
  return {{{"auto", BindThreads::kAuto},
           {"none", BindThreads::kNone},
           {"node", BindThreads::kNode},
           {"core", BindThreads::kCore}}};
}
inline constexpr EnumNames<DeviceChoice, 3> enum_names(DeviceChoice) {
  return {
      {{"auto", DeviceChoice::kAuto}, {"cpu", DeviceChoice::kCpu}, {"cuda", DeviceChoice::kCuda}}};
}
inline constexpr EnumNames<DeviceWeightFormat, 2> enum_names(DeviceWeightFormat) {
  return {{{"bf16", DeviceWeightFormat::kBf16}, {"fp8", DeviceWeightFormat::kFp8}}};
}
inline constexpr EnumNames<DeviceTransport, 3> enum_names(DeviceTransport) {
  return {{{"auto", DeviceTransport::kAuto},
           {"nccl", DeviceTransport::kNccl},
           {"staged", DeviceTransport::kStaged}}};
}
inline constexpr EnumNames<ExchangeChoice, 4> enum_names(ExchangeChoice) {
  return {{{"auto", ExchangeChoice::kAuto},
           {"fixed", ExchangeChoice::kFixed},
           {"exact", ExchangeChoice::kExact},
           {"all_gather", ExchangeChoice::kAllGather}}};
}
inline constexpr EnumNames<AsyncSteps, 3> enum_names(AsyncSteps) {
  return {{{"auto", AsyncSteps::kAuto},
           {"always", AsyncSteps::kAlways},
           {"never", AsyncSteps::kNever}}};
}
inline constexpr EnumNames<OverloadStatus, 2> enum_names(OverloadStatus) {
  return {{{"503", OverloadStatus::k503}, {"429", OverloadStatus::k429}}};
}
inline constexpr EnumNames<LogLevel, 5> enum_names(LogLevel) {
  return {{{"trace", LogLevel::kTrace},
           {"debug", LogLevel::kDebug},
           {"info", LogLevel::kInfo},
           {"warn", LogLevel::kWarn},
           {"error", LogLevel::kError}}};
}
inline constexpr EnumNames<LogFormat, 2> enum_names(LogFormat) {
  return {{{"text", LogFormat::kText}, {"json", LogFormat::kJson}}};
}

// Longest wait that may be configured: a day. A longer one is a mistake of unit.
inline constexpr double kMaxWaitMs = 86'400'000;
inline constexpr double kMaxBytes = 1LL << 50;
inline constexpr double kMaxTokens = std::numeric_limits<std::int32_t>::max();

struct ModelSection {
  std::string path;
  std::string served_name;
  bool prefault = true;
  CpuWeights cpu_weights = CpuWeights::kAuto;

  template <class Self, class Visitor>
  static void fields(Self& s, Visitor&& v) {
    v({"path",
       "Hugging Face folder (config.json, safetensors) or .gguf file of the model. For "
       "measurements: random:24b-a2b or random:8b-a1b, a shape with random weights, and a seed "
       "behind another colon if you like."},
      s.path);
    v({"served_name", "Name that clients see and ask for. Empty: the last part of model.path."},
      s.served_name);
    v({"prefault",
       "Read the weights into memory before the cell calls itself ready, so that no request pays "
       "for a page fault."},
      s.prefault);
    v({"cpu_weights",
       "Form of the matrices on the CPU. auto: quantised ones are packed for 8-bit dot products at "
       "the start, into memory of the worker's own; others are used as they lie in the file. "
       "mapped: all as in the file, with 32-bit activations, slower. p4, p8: bf16, f16 and f32 "
       "matrices are quantised to 4 or 8 bits and packed as well, but for embedding, head and "
       "router. Files that millrace pack wrote are used as they are. auto and mapped differ in the "
       "last places of results, p4 and p8 in more."},
      s.cpu_weights);
  }
};

struct GridSection {
  std::int32_t stages = 1;
  std::int32_t lanes = 1;
  std::int32_t cells = 1;
  bool embedded = false;
  std::int32_t threads_per_rank = 0;
  BindThreads bind_threads = BindThreads::kAuto;
  Isa isa = Isa::kAuto;

  template <class Self, class Visitor>
  static void fields(Self& s, Visitor&& v) {
    v({"stages", "Pipeline stages of a cell (P): the layers are cut into this many parts.", 1, 64},
      s.stages);
    v({"lanes",
       "Expert lanes of a stage (E): each lane runs its own sequences and owns a share of every "
       "layer's experts. A cell has stages x lanes workers.",
       1, 64},
      s.lanes);
    v({"cells", "Cells, that is full copies of the model, that serve starts on this machine.", 1,
       64},
      s.cells);
    v({"embedded",
       "Run the cells as threads of the gateway's process, without mpirun: one process, and no "
       "restart: a crash ends everything."},
      s.embedded);
    v({"threads_per_rank",
       "Compute threads of each worker. 0: the cores of this machine divided by its workers.", 0,
       1024},
      s.threads_per_rank);
    v({"bind_threads",
       "Cores and memory of each CPU worker; the machine's workers divide its cores evenly and in "
       "order. none: the system places them. node: its threads stay on the NUMA nodes of its "
       "share, and its memory comes from there. core: moreover each thread stays on cores of its "
       "own, for a machine that serves one model and nothing else. auto: node when there are "
       "several NUMA nodes. The same results."},
      s.bind_threads);
    v({"isa",
       "Instruction set of the CPU kernels. auto: the best that this processor has. avx512_amx: "
       "avx512 with packed weights on AMX tiles, the same bits. reference: the slow definition, "
       "for checking the others. Results are bit-equal only within one choice, but for these two."},
      s.isa);
  }
};

struct DeviceSection {
  DeviceChoice backend = DeviceChoice::kAuto;
  std::vector<std::string> indices;
  std::string profile;
  std::int32_t ranks_per_device = 1;
  DeviceWeightFormat weights = DeviceWeightFormat::kBf16;
  double memory_fraction = 0.9;
  bool graphs = true;
  bool overlap_launches = false;
  DeviceTransport transport = DeviceTransport::kAuto;
  bool bind_numa = true;

  template <class Self, class Visitor>
  static void fields(Self& s, Visitor&& v) {
    v({"backend",
       "Where the workers of a cell compute, all of them alike. auto: on CUDA devices when this "
       "build has CUDA and the machine has a device, else on the CPU."},
      s.backend);
    v({"indices",
       "CUDA devices, by their index, in the order in which this machine's workers take them. "
       "Empty: all, in order."},
      s.indices);
    v({"profile",
       "What the devices are, as compute capability:multiprocessors:free memory (9.0:132:139GiB). "
       "Empty: asked of them at the start. Set it to plan for devices that are not here."},
      s.profile);
    v({"ranks_per_device",
       "Workers that share one device, each with its part of device.memory_fraction. More than 1 "
       "is for tests: they only wait for each other. Over NCCL each takes an NCCL_HOSTID of its "
       "own, for which it must be a process: not with grid.embedded.",
       1, 64},
      s.ranks_per_device);
    v({"weights",
       "Number format of the matrices on the device. fp8: E4M3 with a scale for each block, made "
       "from the checkpoint at the start; embedding, head, router and norms stay bf16 or f32."},
      s.weights);
    v({"memory_fraction",
       "Share of a device's free memory that is used in all: weights, workspace, and what is left "
       "for KV blocks. Takes the place of cache.memory_fraction on devices.",
       0, 0.98, true},
      s.memory_fraction);
    v({"graphs",
       "Decode steps as CUDA graphs, recorded when a batch size first comes. Off: kernel by "
       "kernel, slower and with the same results."},
      s.graphs);
    v({"overlap_launches",
       "Kernels start while the one in front ends, which hides the time of launches (programmatic "
       "dependent launch; compute capability 9.0 and later, elsewhere without effect). The same "
       "results."},
      s.overlap_launches);
    v({"transport",
       "How workers exchange device memory. nccl: between the devices. staged: through host memory "
       "and MPI. auto: nccl where the library is, and each worker has its own device. All give the "
       "same bits."},
      s.transport);
    v({"bind_numa",
       "Keep a worker's thread and its host memory on the cores and memory nearest to its device."},
      s.bind_numa);
  }
};

struct CacheSection {
  std::int32_t block_tokens = 32;
  std::int64_t kv_tokens = 0;
  std::int64_t memory_bytes = 0;
  double memory_fraction = 0.5;
  KvDtype kv_dtype = KvDtype::kBf16;
  std::int32_t max_sequences = 32;
  std::int64_t max_context_tokens = 0;
  bool prefix = true;
  std::int32_t state_snapshots = 0;

  // What state_snapshots stands for.
  std::int32_t snapshots() const {
    if (!prefix) return 0;
    return state_snapshots > 0 ? state_snapshots : 2 * max_sequences;
  }

  template <class Self, class Visitor>
  static void fields(Self& s, Visitor&& v) {
    v({"block_tokens", "Tokens of one KV block.", 1, 1024}, s.block_tokens);
    v({"kv_tokens",
       "KV cache of one lane, in tokens; rounded down to whole blocks. 0: as many as fit into "
       "cache.memory_bytes.",
       0, 1e12},
      s.kv_tokens);
    v({"memory_bytes",
       "Memory of one worker for KV blocks and conv slots. 0: cache.memory_fraction decides. Not "
       "used when cache.kv_tokens is given.",
       0, kMaxBytes},
      s.memory_bytes);
    v({"memory_fraction",
       "Share of the memory that is free after the weights are loaded, divided among this "
       "machine's "
       "workers, for KV blocks and conv slots. Used when kv_tokens and memory_bytes are both 0.",
       0, 0.98, true},
      s.memory_fraction);
    v({"kv_dtype",
       "Number format of cached keys and values. bf16 halves the memory of f32 and changes the "
       "numbers a little, the same way on every grid. f32 only on the CPU, fp8 (E4M3) only on "
       "devices."},
      s.kv_dtype);
    v({"max_sequences", "Sequences that one lane runs at the same time.", 1, 65536},
      s.max_sequences);
    v({"max_context_tokens",
       "Longest sequence, prompt and answer together. 0: what the model allows, or the lane's KV "
       "cache if that is smaller.",
       0, kMaxTokens},
      s.max_context_tokens);
    v({"prefix",
       "Whether a sequence goes on behind what its lane has computed of the same beginning: KV "
       "blocks stay until their room is needed. The tokens are the same either way."},
      s.prefix);
    v({"state_snapshots",
       "Positions of one lane at which cache.prefix keeps the state of the short convolutions, so "
       "that a sequence goes on there at once; elsewhere the last tokens in front (60 of "
       "LFM2-24B-A2B) run again. Each takes the memory of one sequence's state. 0: twice "
       "cache.max_sequences.",
       0, 65536},
      s.state_snapshots);
  }
};

struct SchedulerSection {
  std::int32_t max_step_tokens = 512;
  std::int32_t prefill_chunk_tokens = 256;
  ExchangeChoice exchange = ExchangeChoice::kAuto;
  std::int32_t max_waiting = 1024;
  AsyncSteps async = AsyncSteps::kAuto;
  std::int64_t max_gap_ms = 2'000;

  template <class Self, class Visitor>
  static void fields(Self& s, Visitor&& v) {
    v({"max_step_tokens",
       "Most tokens of one lane in one step, decodes and prefill chunks together. Sizes the "
       "activation buffers.",
       1, 65536},
      s.max_step_tokens);
    v({"prefill_chunk_tokens",
       "Longest piece of one prompt in one step. Smaller: steadier gaps between the tokens of "
       "others; larger: faster first tokens.",
       1, 65536},
      s.prefill_chunk_tokens);
    v({"exchange",
       "How tokens travel between expert lanes. auto: fixed for decode steps, exact for prefill. "
       "All "
       "give the same bits."},
      s.exchange);
    v({"max_waiting",
       "Sequences a cell holds beyond those it runs; more are refused to the gateway.", 0, 1e6},
      s.max_waiting);
    v({"async",
       "Give workers the next step while one runs, before its tokens are known, so that they need "
       "not wait for it. The same tokens; a request that arrives waits for a step more, and one "
       "that ends by a stop token takes a row of one step more. auto: on devices with grid.stages "
       "1. always: on the CPU as well. The stages of a pipeline work on steps of different "
       "sequences instead."},
      s.async);
    v({"max_gap_ms",
       "Longest wait for the next token of an answer that prompts of others shall cause: while "
       "answers run, a step takes no more prompt tokens than steps have been measured to have time "
       "for (16 at least). Prompts then take longer. 0: no limit but prefill_chunk_tokens.",
       0, kMaxWaitMs},
      s.max_gap_ms);
  }
};

struct GatewaySection {
  std::string host = "127.0.0.1";
  std::int32_t port = 8000;
  std::string cell_host = "127.0.0.1";
  std::int32_t cell_port = 8001;
  std::int32_t max_queued_requests = 256;
  std::int64_t max_queued_tokens = 1'000'000;
  std::int64_t queue_timeout_ms = 60'000;
  std::int32_t max_replays = 3;
  std::int64_t replay_timeout_ms = 300'000;
  std::int64_t max_body_bytes = 32LL << 20;
  std::int32_t max_connections = 4096;
  std::int64_t header_timeout_ms = 10'000;
  std::int64_t body_timeout_ms = 60'000;
  std::int64_t idle_timeout_ms = 75'000;
  std::int64_t write_timeout_ms = 30'000;
  std::int64_t stream_buffer_tokens = 4096;
  std::vector<std::string> api_keys;
  std::string api_keys_file;
  bool guard_metrics = false;
  std::vector<std::string> cors_origins;
  std::int32_t max_n = 16;
  OverloadStatus overload_status = OverloadStatus::k503;
  std::int64_t sse_keepalive_ms = 15'000;

  template <class Self, class Visitor>
  static void fields(Self& s, Visitor&& v) {
    v({"host", "Address on which the HTTP API listens. 0.0.0.0: all of this machine's addresses."},
      s.host);
    v({"port", "Port of the HTTP API. 0: any free port, printed at the start.", 0, 65535}, s.port);
    v({"cell_host", "Address on which the gateway waits for cells. Keep it inside the cluster."},
      s.cell_host);
    v({"cell_port", "Port on which the gateway waits for cells. 0: any free port.", 0, 65535},
      s.cell_port);
    v({"max_queued_requests",
       "Requests that may wait for a cell. The next one is refused at once with "
       "gateway.overload_status and Retry-After.",
       1, 1e6},
      s.max_queued_requests);
    v({"max_queued_tokens", "Prompt tokens of all waiting requests together; the same refusal.", 1,
       1e12},
      s.max_queued_tokens);
    v({"queue_timeout_ms", "Longest wait of a request before its first step; then it is refused.",
       1, kMaxWaitMs},
      s.queue_timeout_ms);
    v({"max_replays",
       "How often in a row a request whose cell was lost is begun again, where the client has got "
       "to, without a new token between; then it ends with an error, as it may be what cells die "
       "of. 0: it ends with its cell.",
       0, 100},
      s.max_replays);
    v({"replay_timeout_ms",
       "How long a request whose cell was lost waits for a cell that goes on with it.", 1,
       kMaxWaitMs},
      s.replay_timeout_ms);
    v({"max_body_bytes", "Largest request body; a larger one gets 413.", 1024, 1LL << 32},
      s.max_body_bytes);
    v({"max_connections", "Open client connections; further ones are closed at once.", 1, 1e6},
      s.max_connections);
    v({"header_timeout_ms", "Time for a client to send the header of a request.", 1, kMaxWaitMs},
      s.header_timeout_ms);
    v({"body_timeout_ms", "Time for a client to send the body of a request.", 1, kMaxWaitMs},
      s.body_timeout_ms);
    v({"idle_timeout_ms", "How long a kept-alive connection may stay silent between requests.", 1,
       kMaxWaitMs},
      s.idle_timeout_ms);
    v({"write_timeout_ms",
       "How long one write to a client may block before the client counts as gone and its request "
       "is "
       "cancelled.",
       1, kMaxWaitMs},
      s.write_timeout_ms);
    v({"stream_buffer_tokens",
       "Tokens that may wait for a slow reader; beyond that its request is cancelled.", 1, 1e7},
      s.stream_buffer_tokens);
    v({"api_keys",
       "Keys that open the API (Authorization: Bearer or x-api-key). None here and none in "
       "gateway.api_keys_file: open to all.",
       0, 0, false, true},
      s.api_keys);
    v({"api_keys_file",
       "File with further keys, one a line, for keys that do not belong into a configuration file. "
       "Lines that are empty or begin with # do not count."},
      s.api_keys_file);
    v({"guard_metrics", "Ask for a key on /metrics as well."}, s.guard_metrics);
    v({"cors_origins", "Web origins whose pages may call the API; [\"*\"] for all. Empty: none."},
      s.cors_origins);
    v({"max_n", "Most choices (n) of one request.", 1, 128}, s.max_n);
    v({"overload_status",
       "Status of a refusal when the whole service is full. 429 suits proxies that eject a backend "
       "after 5xx answers."},
      s.overload_status);
    v({"sse_keepalive_ms",
       "Silence on a stream after which a comment line keeps proxies from closing it. 0: never.", 0,
       kMaxWaitMs},
      s.sse_keepalive_ms);
  }
};

struct DeadlinesSection {
  std::int64_t step_ms = 60'000;
  std::int64_t collective_ms = 60'000;
  std::int64_t heartbeat_interval_ms = 1'000;
  std::int64_t heartbeat_limit_ms = 3'000;
  std::int64_t progress_limit_ms = 30'000;
  std::int64_t load_ms = 900'000;
  std::int64_t drain_ms = 60'000;

  template <class Self, class Visitor>
  static void fields(Self& s, Visitor&& v) {
    v({"step_ms",
       "Longest step. A worker or coordinator that exceeds it ends its cell, which is "
       "started again.",
       1, kMaxWaitMs},
      s.step_ms);
    v({"collective_ms",
       "Longest wait for the other ranks in one collective or stage hand-over. At most "
       "deadlines.step_ms.",
       1, kMaxWaitMs},
      s.collective_ms);
    v({"heartbeat_interval_ms", "How often a cell tells the gateway its progress.", 10, kMaxWaitMs},
      s.heartbeat_interval_ms);
    v({"heartbeat_limit_ms",
       "Silence after which the gateway gives a cell up and ends its requests with an error. At "
       "least twice "
       "deadlines.heartbeat_interval_ms.",
       20, kMaxWaitMs},
      s.heartbeat_limit_ms);
    v({"progress_limit_ms",
       "With work to do and no step finished for this long, a cell is no longer ready.", 1,
       kMaxWaitMs},
      s.progress_limit_ms);
    v({"load_ms", "Longest start of a cell, from launch to ready.", 1, kMaxWaitMs}, s.load_ms);
    v({"drain_ms", "After SIGTERM, how long running requests may still finish.", 0, kMaxWaitMs},
      s.drain_ms);
  }
};

struct CellSection {
  std::string id;
  std::int32_t index = 0;
  std::vector<std::string> gateways;
  std::int64_t gateway_lookup_ms = 5'000;
  std::string health_host = "127.0.0.1";
  std::int32_t health_port = 0;
  std::string mpirun = "mpirun";
  std::vector<std::string> mpirun_args;
  std::vector<std::string> hosts;
  std::string network;
  std::string secret_file;
  std::int64_t restart_backoff_min_ms = 500;
  std::int64_t restart_backoff_max_ms = 30'000;

  template <class Self, class Visitor>
  static void fields(Self& s, Visitor&& v) {
    v({"id", "Name of this cell in logs and metrics. Empty: the host name and a number."}, s.id);
    v({"index",
       "Which of the grid.cells on this machine it is: each binds to cores of its own. serve "
       "numbers its cells itself.",
       0, 63},
      s.index);
    v({"gateways",
       "host:port of each gateway that this cell serves. Every address behind a name is one, and "
       "gets a link. Empty: the gateway in the same serve."},
      s.gateways);
    v({"gateway_lookup_ms",
       "How often the names in cell.gateways are looked up: within this time a new gateway gets a "
       "link. One that its name no longer gives keeps the link until it ends it.",
       100, kMaxWaitMs},
      s.gateway_lookup_ms);
    v({"health_host", "Address on which millrace cell answers probes."}, s.health_host);
    v({"health_port",
       "Port of /health/started, /health/ready, /health/live and /metrics of millrace cell, and of "
       "/drain. "
       "0: none.",
       0, 65535},
      s.health_port);
    v({"mpirun", "Path of mpirun (Open MPI 4.1 or later)."}, s.mpirun);
    v({"mpirun_args", "Further arguments of mpirun, before the program."}, s.mpirun_args);
    v({"hosts",
       "Nodes of this cell as host or host:workers, this one first; each has a host name of its "
       "own. Rank 0, which computes "
       "nothing, "
       "runs here beside this node's workers. Nodes with a number are filled in this order, the "
       "others "
       "share the rest evenly. The binary and the model have the same path on each node. Empty: "
       "all "
       "ranks run here."},
      s.hosts);
    v({"network",
       "Subnets (10.0.0.0/24) or interfaces, separated by commas, over which the ranks of several "
       "nodes talk. Empty: Open MPI chooses."},
      s.network);
    v({"secret_file",
       "File with the secret that a gateway asks of its cells: 32 bytes or more, readable by its "
       "owner alone; the same on both sides. The link itself is not encrypted. Empty: none, which "
       "suits a network that only gateways and cells share."},
      s.secret_file);
    v({"restart_backoff_min_ms",
       "Pause before the first restart of a dead cell; doubles each time.", 1, kMaxWaitMs},
      s.restart_backoff_min_ms);
    v({"restart_backoff_max_ms", "Longest pause between restarts.", 1, kMaxWaitMs},
      s.restart_backoff_max_ms);
  }
};

struct NodeAgentSection {
  std::string host = "0.0.0.0";
  std::int32_t port = 7700;
  std::string secret_file;
  std::int64_t timeout_ms = 10'000;
  std::int32_t max_connections = 16;

  template <class Self, class Visitor>
  static void fields(Self& s, Visitor&& v) {
    v({"host", "Address on which millrace node-agent listens."}, s.host);
    v({"port", "Port of every node agent of the cluster.", 1, 65535}, s.port);
    v({"secret_file",
       "File with the secret that leader and agents prove to each other: 32 bytes or more, "
       "readable "
       "by its owner alone. Empty: the other nodes of cell.hosts are reached by mpirun's own ssh."},
      s.secret_file);
    v({"timeout_ms",
       "Longest connect or handshake, and the silence after which leader and agent give each other "
       "up and the agent ends what it started.",
       100, kMaxWaitMs},
      s.timeout_ms);
    v({"max_connections", "Cells that may have ranks on a node at the same time.", 1, 1024},
      s.max_connections);
  }
};

struct LoggingSection {
  LogLevel level = LogLevel::kInfo;
  LogFormat format = LogFormat::kText;

  template <class Self, class Visitor>
  static void fields(Self& s, Visitor&& v) {
    v({"level", "Least severe messages that are written."}, s.level);
    v({"format", "text for people, json for log collectors: one object a line."}, s.format);
  }
};

struct ClusterConfig {
  ModelSection model;
  GridSection grid;
  DeviceSection device;
  CacheSection cache;
  SchedulerSection scheduler;
  GatewaySection gateway;
  DeadlinesSection deadlines;
  CellSection cell;
  NodeAgentSection node_agent;
  LoggingSection logging;

  template <class Self, class Visitor>
  static void sections(Self& s, Visitor&& v) {
    v("model", "What is served.", s.model);
    v("grid", "How many ranks a cell has, and where they run.", s.grid);
    v("device", "Workers on CUDA devices.", s.device);
    v("cache", "State of sequences: KV blocks and conv slots, per lane.", s.cache);
    v("scheduler", "What goes into one step.", s.scheduler);
    v("gateway", "The HTTP API, its limits and its queue.", s.gateway);
    v("deadlines", "Nothing waits for ever: the limit of every wait inside the cluster.",
      s.deadlines);
    v("cell", "Launch of one cell and its links to gateways.", s.cell);
    v("node_agent", "The agent that starts ranks on the other nodes of a cell.", s.node_agent);
    v("logging", "What the processes write to standard error.", s.logging);
  }
};

// Reads and checks a configuration file. Fields that are absent keep their defaults. Errors are
// kInvalidArgument (kNotFound for an unreadable file) with `field` the path of the offending field
// ("gateway.port") and a message "file:line:column: what is wrong; what is allowed". `overrides`
// are applied last, in order, and the whole is checked once at the end.
Result<ClusterConfig> load_cluster_config(const std::string& path,
                                          const std::vector<std::string>& overrides = {});

// The same for YAML text; `filename` is used in messages only. An empty text gives the defaults.
Result<ClusterConfig> parse_cluster_config(const std::string& text, const std::string& filename,
                                           const std::vector<std::string>& overrides = {});

// Sets one field from "section.field=value"; the value is read as YAML, so lists are [a, b] and
// sizes 2GiB. Checks the field itself; call check_cluster_config after the last override.
Result<void> apply_override(ClusterConfig& config, const std::string& assignment);

// The rules that concern more than one field, or depend on the form of a string (host:port lists).
Result<void> check_cluster_config(const ClusterConfig& config);

// The effective configuration as YAML that parse_cluster_config reads back to the same values,
// except that secrets are replaced by a word. Without `redact` the secrets are written.
std::string to_yaml(const ClusterConfig& config, bool redact = true);

// config/default.yaml: every field with its default, meaning and range as a comment.
std::string default_yaml();

// The same as a Markdown reference page.
std::string config_reference_markdown();

// gateway.api_keys and the keys of gateway.api_keys_file. An unreadable or empty file is an error:
// it must not leave the API open.
Result<std::vector<std::string>> load_api_keys(const GatewaySection& gateway);

// Splits "host:port" or "[v6]:port"; the port must be given and be in [1, 65535].
struct HostPort {
  std::string host;
  std::uint16_t port = 0;
  bool operator==(const HostPort&) const = default;
};
Result<HostPort> parse_host_port(std::string_view text, std::string_view field);

}  // namespace millrace
