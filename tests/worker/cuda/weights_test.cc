// Weights on the device: every value where the kernels look for it, from every number format.
#include "worker/cuda/device_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "config/model_config.h"
#include "kernels/cuda/gemm_pack.h"
#include "kernels/table.h"
#include "tests/support/engine_harness.h"
#include "worker/cuda/device_memory_plan.h"
#include "worker/cuda/weight_upload.h"
#include "worker/sharding.h"

namespace millrace {
namespace {

namespace cuda = kernels::cuda;
using cuda::BFloat16;
using kernels::WeightView;
using ::testing::HasSubstr;

constexpr std::chrono::milliseconds kDeadline{10'000};

template <class T>
std::vector<T> read(const T* device, std::int64_t count) {
  std::vector<T> out(static_cast<std::size_t>(count));
  const cuda::Stream stream;
  cuda::copy_to_host(stream, out.data(), device, out.size() * sizeof(T));
  cuda::synchronize(stream, kDeadline);
  return out;
}

// Rows of a packed weight, as they were before packing.
std::vector<BFloat16> unpacked(const cuda::PackedWeight& packed) {
  const auto values = static_cast<std::size_t>(packed.rows * packed.cols);
  const cuda::DeviceBuffer rows(values * sizeof(BFloat16));
  const cuda::Stream stream;
  cuda::WeightRowsOut out;
  out.first = kernels::matrix(rows.as<BFloat16>(), packed.rows, packed.cols);
  cuda::unpack_weight(stream, packed, out);
  cuda::synchronize(stream, kDeadline);
  return read(rows.as<BFloat16>(), packed.rows * packed.cols);
}

std::vector<float> values_of(const WeightView& view) {
  std::vector<float> out(static_cast<std::size_t>(view.rows * view.cols));
  kernels::reference_table().dequantize({}, view,
                                        kernels::matrix(out.data(), view.rows, view.cols));
  return out;
}

std::vector<BFloat16> rounded(const std::vector<WeightView>& stack) {
  std::vector<BFloat16> out;
  for (const WeightView& view : stack) {
    for (const float v : values_of(view)) out.push_back(cuda::to_bf16(v));
  }
  return out;
}

void expect_ffn(const DeviceFfn& device, const FfnWeights& host, std::int64_t slot) {
  cuda::PackedWeight w13 = device.w13;
  w13.data += slot * w13.bytes();
  const std::vector<BFloat16> both = unpacked(w13);
  const std::vector<BFloat16> gate = rounded({host.w1});
  const std::vector<BFloat16> up = rounded({host.w3});
  const std::int64_t cols = w13.cols;
  for (std::int64_t f = 0; f < host.w1.rows; ++f) {
    for (std::int64_t k = 0; k < cols; ++k) {
      const auto at = static_cast<std::size_t>(f * cols + k);
      ASSERT_EQ(both[static_cast<std::size_t>(cuda::gate_row(f) * cols + k)], gate[at]);
      ASSERT_EQ(both[static_cast<std::size_t>(cuda::up_row(f) * cols + k)], up[at]);
    }
  }
  cuda::PackedWeight w2 = device.w2;
  w2.data += slot * w2.bytes();
  EXPECT_EQ(unpacked(w2), rounded({host.w2}));
}

// The f32 sum of the router's pieces is the checkpoint's value.
void expect_router(const DeviceMoe& device, const MoeWeights& host) {
  std::vector<float> sum(static_cast<std::size_t>(host.router.rows * host.router.cols));
  for (const cuda::PackedWeight& piece : device.router) {
    const std::vector<BFloat16> values = unpacked(piece);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += cuda::to_f32(values[i]);
  }
  EXPECT_EQ(sum, values_of(host.router));
}

void expect_layer(const DeviceLayer& device, const LayerWeights& host, const ModelConfig& m) {
  SCOPED_TRACE(host.layer);
  EXPECT_EQ(read(device.operator_norm, m.hidden_size), host.operator_norm);
  EXPECT_EQ(read(device.ffn_norm, m.hidden_size), host.ffn_norm);
  if (host.conv) {
    EXPECT_EQ(unpacked(device.conv->in_proj), rounded({host.conv->in_proj}));
    EXPECT_EQ(unpacked(device.conv->out_proj), rounded({host.conv->out_proj}));
    EXPECT_EQ(read(device.conv->taps, m.hidden_size * m.conv_l_cache), host.conv->taps);
  } else {
    const AttentionWeights& a = *host.attention;
    EXPECT_EQ(unpacked(device.attention->qkv), rounded({a.q_proj, a.k_proj, a.v_proj}));
    EXPECT_EQ(unpacked(device.attention->out_proj), rounded({a.out_proj}));
    EXPECT_EQ(read(device.attention->q_norm, m.head_dim), a.q_norm);
    EXPECT_EQ(read(device.attention->k_norm, m.head_dim), a.k_norm);
  }
  if (host.dense) expect_ffn(*device.dense, *host.dense, 0);
  if (!host.moe) return;
  expect_router(*device.moe, *host.moe);
  if (!host.moe->expert_bias.empty()) {
    EXPECT_EQ(read(device.moe->bias, m.num_experts), host.moe->expert_bias);
  }
  for (std::size_t slot = 0; slot < host.moe->experts.size(); ++slot) {
    if (host.moe->expert_ids[slot] < 0) continue;
    expect_ffn(device.moe->experts, host.moe->experts[slot], static_cast<std::int64_t>(slot));
  }
}

class Weights : public ::testing::TestWithParam<std::vector<std::string>> {
 protected:
  void SetUp() override {
    std::vector<std::string> arguments = {
        "--preset", "tiny-moe",    "--layers", "4",           "--attention", "2",      "--vocab",
        "320",      "--tokenizer", "builtin",  "--expert-ff", "64",          "--seed", "9"};
    std::string name = "weights";
    for (const std::string& word : GetParam()) {
      arguments.push_back(word);
      name += word;
    }
    if (name.find("gguf") != std::string::npos) name += ".gguf";
    path_ = testing::random_checkpoint(name, arguments);
    model_ = load_model_config(path_).value();
    source_ = std::make_unique<TensorSource>(TensorSource::open(path_).value());
  }

  DeviceLoadOptions options(int threads) const {
    DeviceLoadOptions out;
    out.format.router = router_dtype(*source_, model_);
    out.threads = threads;
    return out;
  }

  std::string path_;
  ModelConfig model_;
  std::unique_ptr<TensorSource> source_;
};

TEST_P(Weights, EveryValueIsWhereTheKernelsLookForIt) {
  const RankShard shard = whole_model(model_);
  const ModelWeights host = load_weights(*source_, model_, shard).value();
  std::uint64_t last = 0;
  DeviceLoadOptions load = options(3);
  load.progress = [&](std::uint64_t done, std::uint64_t total) {
    EXPECT_GE(done, last);
    EXPECT_LE(done, total);
    last = done;
  };
  const auto device = DeviceWeights::load(model_, shard, host, load);
  ASSERT_TRUE(device.has_value()) << device.error().to_string();
  EXPECT_EQ(last, device->source_bytes()) << "the last call has both equal";
  EXPECT_EQ(device->bytes(), device_weight_bytes(model_, shard, load.format));
  const DeviceWeightMap& map = device->map();
  const auto* embed = static_cast<const BFloat16*>(map.embed.data);
  EXPECT_EQ(read(embed, map.embed.rows * map.embed.cols), rounded({host.embed}));
  EXPECT_EQ(unpacked(map.lm_head), rounded({host.lm_head}));
  EXPECT_EQ(read(map.final_norm, model_.hidden_size), host.final_norm);
  ASSERT_EQ(map.layers.size(), host.layers.size());
  for (std::size_t i = 0; i < map.layers.size(); ++i) {
    expect_layer(map.layers[i], host.layers[i], model_);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Weights,
                         ::testing::Values(std::vector<std::string>{"--dtype", "bf16"},
                                           std::vector<std::string>{"--dtype", "f32", "--untied"},
                                           std::vector<std::string>{"--dtype", "f16", "--experts",
                                                                    "packed"},
                                           std::vector<std::string>{"--format", "gguf", "--quant",
                                                                    "q4_0", "--quantise"}));

class OneCheckpoint : public Weights {};
INSTANTIATE_TEST_SUITE_P(Bf16, OneCheckpoint,
                         ::testing::Values(std::vector<std::string>{"--dtype", "bf16"}));

// Lane 1 of 3 of the second of two stages: no embedding, some layers, some slots, one of them
// empty.
TEST_P(OneCheckpoint, ARankGetsItsOwnPartOnly) {
  const std::vector<StageRange> stages = {{0, 2}, {2, 4}};
  const std::vector<std::int32_t> slots = {5, -1, 2};
  const RankShard shard = make_shard(model_, stages, 1, slots);
  const ModelWeights host = load_weights(*source_, model_, shard).value();
  const auto device = DeviceWeights::load(model_, shard, host, options(1));
  ASSERT_TRUE(device.has_value()) << device.error().to_string();
  EXPECT_EQ(device->map().embed.data, nullptr);
  ASSERT_EQ(device->map().layers.size(), 2U);
  for (std::size_t i = 0; i < 2; ++i) {
    expect_layer(device->map().layers[i], host.layers[i], model_);
  }
  EXPECT_LT(device->bytes(),
            device_weight_bytes(model_, whole_model(model_), options(1).format) / 2);
}

TEST_P(OneCheckpoint, Fp8RefusesValuesThatItCannotHold) {
  const RankShard shard = whole_model(model_);
  ModelWeights host = load_weights(*source_, model_, shard).value();
  DeviceLoadOptions load = options(2);
  load.format.linears = cuda::WeightFormat::kFp8E4M3;
  EXPECT_TRUE(DeviceWeights::load(model_, shard, host, load).has_value());
  WeightView& victim = host.layers[1].conv->out_proj;
  std::vector<std::uint16_t> values(static_cast<std::size_t>(victim.rows * victim.cols), 0x3f80);
  values[70'000 % values.size()] = 0x7f80;  // infinity
  victim.data = reinterpret_cast<const std::byte*>(values.data());
  const auto device = DeviceWeights::load(model_, shard, host, load);
  ASSERT_FALSE(device.has_value());
  EXPECT_EQ(device.error().field, "model.layers.1.conv.out_proj");
  EXPECT_THAT(device.error().message, HasSubstr("set device.weights to bf16"));
}

// Layers as wide as the 24B's dense FFN do not fit into one buffer.
TEST(WeightPieces, LargeMatricesTravelInWholeTiles) {
  ModelConfig model;
  model.hidden_size = 2048;
  model.intermediate_size = 11776;
  model.vocab_size = 320;
  model.layers = {LayerKind::kShortConv};
  const auto view = [](std::int64_t rows, std::int64_t cols) {
    return WeightView{reinterpret_cast<const std::byte*>(16), kernels::DType::kBF16, rows, cols};
  };
  ModelWeights host;
  LayerWeights& layer = host.layers.emplace_back();
  layer.operator_norm = layer.ffn_norm = std::vector<float>(2048);
  layer.conv = ConvWeights{view(6144, 2048), std::vector<float>(6144), view(2048, 2048)};
  layer.dense = FfnWeights{view(11776, 2048), view(11776, 2048), view(2048, 11776)};
  RankShard shard = whole_model(model);
  shard.first_stage = shard.last_stage = false;
  ArenaCursor cursor(reinterpret_cast<std::byte*>(4096));
  const DeviceWeightMap map = lay_out_weights(cursor, model, shard, {});
  std::int64_t rows = 0;
  int pieces = 0;
  for (const UploadPiece& piece : plan_upload(host, map)) {
    EXPECT_LE(piece.staged_bytes(), 16 << 20) << piece.name;
    if (piece.kind != UploadPiece::Kind::kGateUp) continue;
    ++pieces;
    const std::int64_t tile_bytes = cuda::packed_bytes(piece.format, 64, 2048);
    EXPECT_EQ(piece.target, map.layers[0].dense->w13.data + 2 * rows / 64 * tile_bytes);
    EXPECT_EQ(piece.rows[1].data, layer.dense->w3.row(rows)) << "gate and up go together";
    rows += piece.rows[0].rows;
  }
  EXPECT_EQ(rows, 11776);
  EXPECT_GE(pieces, 6);
}

}  // namespace
}  // namespace millrace
