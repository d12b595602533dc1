#include "kernels/cuda/embedding.h"

#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

TEST(CudaEmbeddingTest, WidensBf16RowsExactly) {
  for (const std::int64_t d : {8, 32, 2048, 2056}) {
    const std::int64_t vocab = 50;
    const std::vector<float> table = random_bf16(vocab * d, 1);
    const DeviceArray<BFloat16> device_table(to_bf16(table));
    const std::vector<std::int32_t> ids = {0, 49, 7, 7, -1, 50, 1 << 30};
    const DeviceArray<std::int32_t> device_ids(ids);
    const DeviceArray<float> out(ids.size() * static_cast<std::size_t>(d), kNan);
    EmbeddingArgs args;
    args.ids = device_ids.data();
    args.table = {device_table.data(), TableType::kBf16, vocab, d};
    args.out = matrix(out.data(), static_cast<std::int64_t>(ids.size()), d);
    embedding(default_stream(), args);
    const std::vector<float> got = out.read();
    for (std::size_t t = 0; t < ids.size(); ++t) {
      const bool known = ids[t] >= 0 && ids[t] < vocab;
      expect_same_bits(rows_of(got, static_cast<std::int64_t>(t), 1, d),
                       known ? rows_of(table, ids[t], 1, d)
                             : std::vector<float>(static_cast<std::size_t>(d), 0.0F),
                       "token " + std::to_string(ids[t]));
    }
  }
}

TEST(CudaEmbeddingTest, TakesTheNewestTokenOfASlot) {
  const std::int64_t d = 16;
  const std::vector<float> table = random_bf16(10 * d, 2);
  const DeviceArray<BFloat16> device_table(to_bf16(table));
  const DeviceArray<std::int32_t> ids({kTokenOfSlot, 3, kTokenOfSlot, kTokenOfSlot});
  const DeviceArray<std::int32_t> slots({2, -1, 0, 1});
  const DeviceArray<std::int32_t> last({9, -1, 5});  // slot 1: its draw failed
  const DeviceArray<float> out(4 * static_cast<std::size_t>(d), kNan);
  embedding(default_stream(), {.ids = ids.data(),
                               .slots = slots.data(),
                               .last_tokens = last.data(),
                               .table = {device_table.data(), TableType::kBf16, 10, d},
                               .out = matrix(out.data(), 4, d)});
  const std::vector<float> got = out.read();
  expect_same_bits(rows_of(got, 0, 1, d), rows_of(table, 5, 1, d), "slot 2");
  expect_same_bits(rows_of(got, 1, 1, d), rows_of(table, 3, 1, d), "an id");
  expect_same_bits(rows_of(got, 2, 1, d), rows_of(table, 9, 1, d), "slot 0");
  expect_same_bits(rows_of(got, 3, 1, d), std::vector<float>(16, 0.0F), "no token");
}

TEST(CudaEmbeddingTest, ScalesFp8Blocks) {
  const std::int64_t vocab = 70;
  const std::int64_t d = 72;  // the last block is cut in both directions
  std::vector<Fp8E4M3> table;
  for (std::int64_t i = 0; i < vocab * d; ++i) {
    const auto bits = static_cast<std::uint8_t>(i * 37 % 256);
    table.push_back({(bits & 0x7f) == 0x7f ? std::uint8_t{0} : bits});  // NaN is tested by nobody
  }
  const std::vector<float> scales = random_values(3 * 3, 4);
  const DeviceArray<Fp8E4M3> device_table(table);
  const DeviceArray<float> device_scales(scales);
  const std::vector<std::int32_t> ids = {0, 31, 32, 69};
  const DeviceArray<std::int32_t> device_ids(ids);
  const DeviceArray<float> out(4 * static_cast<std::size_t>(d), kNan);
  EmbeddingArgs args;
  args.ids = device_ids.data();
  args.table = {device_table.data(), TableType::kFp8E4M3, vocab, d, device_scales.data(), 32, 32};
  args.out = matrix(out.data(), 4, d);
  embedding(default_stream(), args);
  const std::vector<float> scaled = out.read();
  args.table.scales = nullptr;
  embedding(default_stream(), args);
  const std::vector<float> plain = out.read();
  for (std::size_t t = 0; t < ids.size(); ++t) {
    for (std::int64_t c = 0; c < d; ++c) {
      const float value = cuda::to_f32(table[static_cast<std::size_t>(ids[t] * d + c)]);
      const float scale = scales[static_cast<std::size_t>(ids[t] / 32 * 3 + c / 32)];
      const std::size_t at = t * static_cast<std::size_t>(d) + static_cast<std::size_t>(c);
      ASSERT_EQ(scaled[at], value * scale) << ids[t] << " " << c;
      ASSERT_EQ(plain[at], value) << ids[t] << " " << c;
    }
  }
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
