#include "kernels/cuda/attention.h"

#include <fmt/format.h>

#include <cmath>
#include <numeric>
#include <random>

#include "tests/kernels/cuda/bench/bench.h"

namespace millrace::kernels::cuda::bench {

namespace {

constexpr std::int32_t kBlock = 32;

struct Load {
  std::int32_t sequences = 1;
  std::int32_t prefix = 0;  // positions before the step's tokens
  std::int32_t tokens = 1;  // of each sequence in the step
  AttentionBatch batch = AttentionBatch::kDecode;
};

void run_load(Bench& bench, const Shapes& m, KvType type, const Load& load) {
  const bool decode = load.batch == AttentionBatch::kDecode;
  const char* kv = type == KvType::kBf16 ? "bf16" : "fp8";
  const std::string shape = decode ? fmt::format("B={} at {}", load.sequences, load.prefix + 1)
                                   : fmt::format("{} tokens after {}", load.tokens, load.prefix);
  const std::string name =
      fmt::format("{} attention {} {} {}", m.name, decode ? "decode" : "prefill", shape, kv);
  if (!bench.wants(name)) return;
  const StreamRef stream = bench.stream();
  const std::int32_t length = load.prefix + load.tokens;
  const std::int32_t blocks_each = (length + kBlock - 1) / kBlock;
  const std::int32_t rows = load.sequences * load.tokens;

  KvPages pages;
  pages.type = type;
  pages.block_size = kBlock;
  pages.kv_heads = m.kv_heads;
  pages.head_dim = m.head_dim;
  pages.num_blocks = blocks_each * load.sequences;
  const double position = 2.0 * static_cast<double>(pages.block_bytes()) / kBlock;
  const double kv_bytes = position * length * load.sequences;
  const int sets = bench.cold_sets(kv_bytes, 48);
  const std::int64_t values = pages.block_bytes() * pages.num_blocks / pages.element_bytes();
  const auto make = [&](std::uint64_t seed) {
    return type == KvType::kBf16 ? random_bf16(stream, values * sets, seed)
                                 : random_e4m3(stream, values * sets, seed);
  };
  const DeviceBuffer k = make(1), v = make(2);

  std::vector<std::int32_t> table(static_cast<std::size_t>(pages.num_blocks));
  std::iota(table.begin(), table.end(), 0);
  std::mt19937 random(7);
  std::shuffle(table.begin(), table.end(), random);
  std::vector<std::int32_t> sequences, positions;
  for (std::int32_t s = 0; s < load.sequences; ++s) {
    for (std::int32_t i = 0; i < load.tokens; ++i) {
      sequences.push_back(s);
      positions.push_back(load.prefix + i);
    }
  }
  const DeviceBuffer tables = to_device(stream, table);
  const DeviceBuffer device_sequences = to_device(stream, sequences);
  const DeviceBuffer device_positions = to_device(stream, positions);
  const std::int64_t width = std::int64_t{m.heads} * m.head_dim;
  const DeviceBuffer q = random_bf16(stream, rows * width, 3);
  const DeviceBuffer out(static_cast<std::size_t>(rows * width) * sizeof(BFloat16));

  AttentionWorkspace workspace;
  workspace.shape = {m.heads, m.kv_heads, m.head_dim};
  workspace.max_rows = rows;
  const DeviceBuffer scratch(attention_workspace_bytes(workspace));
  workspace.data = scratch.data();
  const AttentionTokens tokens{rows, device_sequences.as<std::int32_t>(),
                               device_positions.as<std::int32_t>(), load.batch};

  Case plan;
  plan.name = fmt::format("{} attention plan {} {}", m.name, decode ? "decode" : "prefill", shape);
  plan.sets = bench.options().smoke ? 2 : 16;
  plan.launch = [&](StreamRef s, int) { attention_plan(s, workspace, tokens); };
  if (type == KvType::kBf16) bench.run(plan);
  attention_plan(stream, workspace, tokens);

  Case c;
  c.name = name;
  c.bytes = kv_bytes + 4.0 * static_cast<double>(rows * width);
  // Row i of a chunk sees prefix + i + 1 positions.
  const double seen = static_cast<double>(load.tokens) * (load.prefix + (load.tokens + 1) / 2.0);
  c.flop = 4.0 * static_cast<double>(width) * seen * load.sequences;
  c.sets = sets;
  c.launch = [&](StreamRef s, int set) {
    AttentionArgs args;
    args.q = heads<const BFloat16>(q.as<BFloat16>(), rows, m.heads, m.head_dim);
    args.pages = pages;
    args.pages.k = k.data() + set * pages.block_bytes() * pages.num_blocks;
    args.pages.v = v.data() + set * pages.block_bytes() * pages.num_blocks;
    args.block_tables = tables.as<std::int32_t>();
    args.max_blocks = blocks_each;
    args.scale = 1.0F / std::sqrt(static_cast<float>(m.head_dim));
    args.out = heads(out.as<BFloat16>(), rows, m.heads, m.head_dim);
    attention(s, workspace, tokens, args);
  };
  bench.run(c);
}

}  // namespace

void run_attention(Bench& bench, const Shapes& m) {
  const bool smoke = bench.options().smoke;
  std::vector<Load> loads;
  if (smoke) {
    loads = {{1, 600, 1}, {3, 40, 1}, {1, 30, 50, AttentionBatch::kMixed}};
  } else {
    for (const auto& [sequences, prefix] :
         {std::pair(1, 4095), std::pair(1, 32767), std::pair(64, 4095), std::pair(256, 1023),
          std::pair(1024, 511), std::pair(1024, 1279)}) {
      loads.push_back({sequences, prefix, 1});
    }
    for (const auto& [tokens, prefix] :
         {std::pair(2048, 0), std::pair(2048, 4096), std::pair(2048, 30720), std::pair(8192, 0),
          std::pair(128, 4096), std::pair(128, 32640)}) {
      loads.push_back({1, prefix, tokens, AttentionBatch::kMixed});
    }
  }
  for (const KvType type : {KvType::kBf16, KvType::kFp8E4M3}) {
    for (const Load& load : loads) run_load(bench, m, type, load);
  }
}

}  // namespace millrace::kernels::cuda::bench
