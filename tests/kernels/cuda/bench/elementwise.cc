// Embedding, norms, convolution, rotation: kernels that only move activations.
#include <fmt/format.h>

#include <random>

#include "kernels/cuda/embedding.h"
#include "kernels/cuda/gemm_pack.h"
#include "kernels/cuda/qk_norm_rope.h"
#include "kernels/cuda/quantize.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/short_conv.h"
#include "kernels/qk_norm_rope.h"
#include "tests/kernels/cuda/bench/bench.h"

namespace millrace::kernels::cuda::bench {

namespace {

std::string named(const Shapes& m, const char* what, std::int64_t tokens) {
  return fmt::format("{} {} T={}", m.name, what, tokens);
}

void run_embedding(Bench& bench, const Shapes& m, std::int64_t t) {
  const std::string name = named(m, "embedding", t);
  if (!bench.wants(name)) return;
  const StreamRef stream = bench.stream();
  const DeviceBuffer table = random_bf16(stream, m.vocab * m.hidden, 1, m.hidden);
  const int sets = bench.cold_sets(static_cast<double>(t * m.hidden * 6), 32);
  std::mt19937 random(1);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(sets * t));
  for (auto& id : ids) id = static_cast<std::int32_t>(random() % static_cast<unsigned>(m.vocab));
  const DeviceBuffer device_ids = to_device(stream, ids);
  const DeviceBuffer out(static_cast<std::size_t>(t * m.hidden) * sizeof(float));
  Case c;
  c.name = name;
  c.bytes = static_cast<double>(t * m.hidden * 6);
  c.sets = sets;
  c.launch = [&](StreamRef s, int set) {
    EmbeddingArgs args;
    args.ids = device_ids.as<std::int32_t>() + set * t;
    args.table.data = table.data();
    args.table.rows = m.vocab;
    args.table.cols = m.hidden;
    args.out = matrix(out.as<float>(), t, m.hidden);
    embedding(s, args);
  };
  bench.run(c);
}

void run_norm(Bench& bench, const Shapes& m, std::int64_t t) {
  const std::string name = named(m, "rms_norm", t);
  if (!bench.wants(name)) return;
  const StreamRef stream = bench.stream();
  const int sets = bench.cold_sets(static_cast<double>(t * m.hidden * 4), 32);
  const DeviceBuffer x = random_f32(stream, sets * t * m.hidden, 1);
  const DeviceBuffer weight = random_f32(stream, m.hidden, 2);
  const DeviceBuffer out(static_cast<std::size_t>(t * m.hidden) * sizeof(BFloat16));
  Case c;
  c.name = name;
  c.bytes = static_cast<double>(t * m.hidden * 6);
  c.sets = sets;
  c.launch = [&](StreamRef s, int set) {
    RmsNormArgs args;
    args.x = matrix<const float>(x.as<float>() + set * t * m.hidden, t, m.hidden);
    args.weight = weight.as<float>();
    args.eps = 1e-5F;
    args.out = matrix(out.as<BFloat16>(), t, m.hidden);
    rms_norm(s, args);
  };
  bench.run(c);
}

// Decode: T sequences of a token each. Prefill: one chunk.
void run_conv(Bench& bench, const Shapes& m, std::int64_t t, bool decode) {
  const std::string name = named(m, decode ? "short_conv decode" : "short_conv prefill", t);
  if (!bench.wants(name)) return;
  const StreamRef stream = bench.stream();
  const std::int64_t d = m.hidden;
  const std::int64_t chunks = decode ? t : 1;
  std::vector<ConvChunk> list;
  std::vector<std::int32_t> rows;
  for (std::int64_t i = 0; i < t; ++i) {
    rows.push_back(static_cast<std::int32_t>(decode ? i : 0));
    if (i < chunks) {
      const auto row = static_cast<std::int32_t>(i);
      list.push_back({row, static_cast<std::int32_t>(t / chunks), row});
    }
  }
  const int sets = bench.cold_sets(static_cast<double>(t * d * 6), 32);
  const DeviceBuffer bcx = random_bf16(stream, sets * t * 3 * d, 1);
  const DeviceBuffer state = random_bf16(stream, sets * chunks * 2 * d, 2);
  const DeviceBuffer taps = random_f32(stream, d * 3, 3);
  const DeviceBuffer out(static_cast<std::size_t>(t * d) * sizeof(BFloat16));
  const DeviceBuffer device_list = to_device(stream, list);
  const DeviceBuffer device_rows = to_device(stream, rows);
  Case c;
  c.name = name;
  c.bytes = static_cast<double>(t * d * 8 + chunks * d * 8);
  c.sets = sets;
  c.launch = [&](StreamRef s, int set) {
    ShortConvArgs args;
    args.bcx = matrix<const BFloat16>(bcx.as<BFloat16>() + set * t * 3 * d, t, 3 * d);
    args.taps = matrix<const float>(taps.as<float>(), d, 3);
    args.chunks = device_list.as<ConvChunk>();
    args.sequences = device_rows.as<std::int32_t>();
    args.state = {state.as<BFloat16>() + set * chunks * 2 * d, {chunks, 2, d}, 2 * d};
    args.out = matrix(out.as<BFloat16>(), t, d);
    short_conv(s, args);
  };
  bench.run(c);
}

void run_rope(Bench& bench, const Shapes& m, std::int64_t t) {
  const std::string name = named(m, "qk_norm_rope", t);
  if (!bench.wants(name)) return;
  const StreamRef stream = bench.stream();
  const std::int64_t half = m.head_dim / 2;
  const int sets = bench.cold_sets(static_cast<double>(t * m.qkv() * 4), 32);
  const DeviceBuffer qkv = random_bf16(stream, sets * t * m.qkv(), 1);
  const DeviceBuffer weight = random_f32(stream, m.head_dim, 2);
  std::vector<std::int32_t> positions;
  std::vector<std::int64_t> slots;
  for (std::int64_t i = 0; i < t; ++i) {
    positions.push_back(static_cast<std::int32_t>(i));
    slots.push_back(i);
  }
  const DeviceBuffer device_positions = to_device(stream, positions);
  const DeviceBuffer device_slots = to_device(stream, slots);
  const DeviceBuffer frequencies = to_device(stream, rope_inverse_frequencies(1e6F, m.head_dim));
  const DeviceBuffer cos(static_cast<std::size_t>(t * half) * sizeof(float));
  const DeviceBuffer sin(static_cast<std::size_t>(t * half) * sizeof(float));
  KvPages pages;
  pages.block_size = 32;
  pages.kv_heads = m.kv_heads;
  pages.head_dim = m.head_dim;
  pages.num_blocks = static_cast<std::int32_t>((t + 31) / 32);
  const DeviceBuffer k(static_cast<std::size_t>(pages.num_blocks * pages.block_bytes()));
  const DeviceBuffer v(k.bytes());
  pages.k = k.data();
  pages.v = v.data();

  Case angles;
  angles.name = named(m, "rope_angles", t);
  angles.bytes = static_cast<double>(t * half * 8);
  angles.sets = bench.options().smoke ? 2 : 16;
  angles.launch = [&](StreamRef s, int) {
    rope_angles(s, {device_positions.as<std::int32_t>(), frequencies.as<float>(),
                    matrix(cos.as<float>(), t, half), matrix(sin.as<float>(), t, half)});
  };
  bench.run(angles);

  Case c;
  c.name = name;
  // qkv read; q written again, k and v to the pages.
  c.bytes = static_cast<double>(t * m.qkv() * 4 + t * half * 8);
  c.sets = sets;
  c.launch = [&](StreamRef s, int set) {
    QkNormRopeArgs args;
    args.qkv = matrix(qkv.as<BFloat16>() + set * t * m.qkv(), t, m.qkv());
    args.heads = m.heads;
    args.q_weight = weight.as<float>();
    args.k_weight = weight.as<float>();
    args.eps = 1e-5F;
    args.cos = matrix<const float>(cos.as<float>(), t, half);
    args.sin = matrix<const float>(sin.as<float>(), t, half);
    args.slots = device_slots.as<std::int64_t>();
    args.pages = pages;
    qk_norm_rope(s, args);
  };
  bench.run(c);
}

// Once at the start, for each matrix.
void run_packing(Bench& bench, const Shapes& m) {
  const StreamRef stream = bench.stream();
  const std::int64_t rows = 3 * m.hidden;
  const std::int64_t cols = m.hidden;
  const auto bytes = static_cast<double>(2 * rows * cols);
  const int sets = bench.cold_sets(bytes, 16);
  const DeviceBuffer plain = random_bf16(stream, sets * rows * cols, 1, cols);
  const DeviceBuffer packed(
      static_cast<std::size_t>(packed_bytes(WeightFormat::kBf16, rows, cols)));
  const DeviceBuffer unusable = to_device(stream, std::vector<std::uint32_t>{0});
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8E4M3}) {
    const bool fp8 = format == WeightFormat::kFp8E4M3;
    Case c;
    c.name =
        fmt::format("{} {} [{}, {}]", m.name, fp8 ? "quantize_weight" : "pack_weight", rows, cols);
    c.bytes = fp8 ? bytes * 1.5 : bytes * 2;
    c.sets = sets;
    c.launch = [&](StreamRef s, int set) {
      const WeightRows source{
          matrix<const BFloat16>(plain.as<BFloat16>() + set * rows * cols, rows, cols), {}};
      if (fp8) {
        quantize_weight(s, source, packed.data(), unusable.as<std::uint32_t>());
      } else {
        pack_weight(s, source, packed.data());
      }
    };
    bench.run(c);
  }
}

}  // namespace

void run_elementwise(Bench& bench, const Shapes& m) {
  std::vector<std::int64_t> tokens = m.decode;
  tokens.push_back(m.prefill);
  for (const std::int64_t t : tokens) {
    run_embedding(bench, m, t);
    run_norm(bench, m, t);
    run_conv(bench, m, t, t != m.prefill);
    run_rope(bench, m, t);
  }
  run_packing(bench, m);
}

}  // namespace millrace::kernels::cuda::bench
