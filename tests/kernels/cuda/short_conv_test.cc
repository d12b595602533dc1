#include "kernels/cuda/short_conv.h"

#include <algorithm>

#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

// One sequence: its bcx rows in bf16 values, and what the definition makes of them from start to
// end.
struct Sequence {
  std::int64_t length = 0;
  std::vector<float> bcx;      // [length, 3D]
  std::vector<float> out;      // [length, D]
  std::vector<float> columns;  // [L - 1 + length, D]: zeros, then s
};

struct Model {
  std::int64_t d, num_taps;
  std::vector<float> taps;  // [D, L]
};

// The sentences of kernels/cuda/short_conv.h, number by number.
Sequence make_sequence(const Model& m, std::int64_t length, std::uint32_t seed) {
  Sequence s;
  s.length = length;
  s.bcx = random_bf16(length * 3 * m.d, seed, 2);
  s.out.resize(static_cast<std::size_t>(length * m.d));
  s.columns.assign(static_cast<std::size_t>((m.num_taps - 1) * m.d), 0.0F);
  for (std::int64_t t = 0; t < length; ++t) {
    const float* row = &s.bcx[static_cast<std::size_t>(t * 3 * m.d)];
    for (std::int64_t c = 0; c < m.d; ++c) {
      s.columns.push_back(round_bf16(row[c] * row[2 * m.d + c]));
    }
    for (std::int64_t c = 0; c < m.d; ++c) {
      const float* taps = &m.taps[static_cast<std::size_t>(c * m.num_taps)];
      const auto column = [&](std::int64_t j) {
        return s.columns[static_cast<std::size_t>((t + j) * m.d + c)];
      };
      float sum = taps[0] * column(0);
      for (std::int64_t j = 1; j < m.num_taps; ++j) sum = std::fma(taps[j], column(j), sum);
      s.out[static_cast<std::size_t>(t * m.d + c)] = round_bf16(row[m.d + c] * sum);
    }
  }
  return s;
}

// Runs steps of chunks as a worker does and compares each row as it comes.
class Runner {
 public:
  Runner(const Model& m, std::int64_t slots)
      : m_(m),
        slots_(slots),
        taps_(m.taps),
        state_(static_cast<std::size_t>(slots * (m.num_taps - 1) * m.d), kBf16Nan) {}

  struct Part {
    const Sequence* sequence;
    std::int64_t begin, length;
    std::int32_t slot;  // -1: padding
    ConvSave save{}, save2{};
  };

  void clear(const std::vector<std::int32_t>& slots) {
    std::vector<ConvMove> moves;
    for (const std::int32_t slot : slots) moves.push_back({slot, -1});
    move(moves);
  }
  void move(const std::vector<ConvMove>& moves) {
    const DeviceArray<ConvMove> list(moves);
    move_conv_state(default_stream(), {.state = state_.data(),
                                       .layers = 1,
                                       .layer_stride = 0,
                                       .slot_elements = (m_.num_taps - 1) * m_.d,
                                       .moves = list.data(),
                                       .count = static_cast<std::int64_t>(moves.size())});
  }

  // `padding` rows that belong to no chunk follow.
  void step(const std::vector<Part>& parts, std::int64_t padding, const std::string& what) {
    std::vector<float> bcx, want;
    std::vector<ConvChunk> chunks;
    std::vector<std::int32_t> sequences;
    for (const Part& p : parts) {
      chunks.push_back({static_cast<std::int32_t>(sequences.size()),
                        static_cast<std::int32_t>(p.length),
                        p.slot,
                        {p.save2, p.save}});
      sequences.insert(sequences.end(), static_cast<std::size_t>(p.length),
                       static_cast<std::int32_t>(chunks.size()) - 1);
      const auto rows = rows_of(p.sequence->bcx, p.begin, p.length, 3 * m_.d);
      bcx.insert(bcx.end(), rows.begin(), rows.end());
      const auto out = p.slot >= 0
                           ? rows_of(p.sequence->out, p.begin, p.length, m_.d)
                           : std::vector<float>(static_cast<std::size_t>(p.length * m_.d), 0.0F);
      want.insert(want.end(), out.begin(), out.end());
    }
    sequences.insert(sequences.end(), static_cast<std::size_t>(padding), -1);
    bcx.resize(sequences.size() * static_cast<std::size_t>(3 * m_.d), kNan);
    want.resize(sequences.size() * static_cast<std::size_t>(m_.d), 0.0F);
    expect_same_bits(run(bcx, chunks, sequences), want, what);
  }

  std::vector<float> state(std::int32_t slot) const {
    return rows_of(to_f32(state_.read()), slot * (m_.num_taps - 1), m_.num_taps - 1, m_.d);
  }

 private:
  std::vector<float> run(const std::vector<float>& bcx, const std::vector<ConvChunk>& chunks,
                         const std::vector<std::int32_t>& sequences) {
    const auto tokens = static_cast<std::int64_t>(sequences.size());
    const DeviceArray<BFloat16> device_bcx(to_bf16(bcx));
    const DeviceArray<ConvChunk> device_chunks(chunks);
    const DeviceArray<std::int32_t> device_sequences(sequences);
    const DeviceArray<BFloat16> out(static_cast<std::size_t>(tokens * m_.d), kBf16Nan);
    ShortConvArgs args;
    args.bcx = matrix<const BFloat16>(device_bcx.data(), tokens, 3 * m_.d);
    args.taps = matrix<const float>(taps_.data(), m_.d, m_.num_taps);
    args.chunks = device_chunks.data();
    args.sequences = device_sequences.data();
    args.state = heads(state_.data(), slots_, m_.num_taps - 1, m_.d);
    args.out = matrix(out.data(), tokens, m_.d);
    short_conv(default_stream(), args);
    return to_f32(out.read());
  }

  Model m_;
  std::int64_t slots_;
  DeviceArray<float> taps_;
  DeviceArray<BFloat16> state_;
};

Model make_model(std::int64_t d, std::int64_t num_taps) {
  return {d, num_taps, random_values(d * num_taps, static_cast<std::uint32_t>(num_taps))};
}

std::vector<float> last_columns(const Model& m, const Sequence& s, std::int64_t at) {
  return rows_of(s.columns, at, m.num_taps - 1, m.d);
}

// The definition itself against the reference in double, which does not round s: that costs half a
// bf16 step of every product, the result another.
TEST(CudaShortConvTest, TheDefinitionIsTheReferenceButForRounding) {
  const Model m = make_model(16, 3);
  const Sequence s = make_sequence(m, 20, 5);
  std::vector<float> state(2 * 16, 0.0F);
  std::vector<float> want = poisoned(20 * 16);
  std::vector<float> magnitude = poisoned(20 * 16);
  const std::vector<ConvSegment> segments = {{0, 20, 0}};
  kernels::ShortConvArgs args;
  args.bcx = matrix<const float>(s.bcx.data(), 20, 48);
  args.taps = matrix<const float>(m.taps.data(), 16, 3);
  args.segments = segments;
  args.state = heads(state.data(), 1, 2, 16);
  args.out = matrix(want.data(), 20, 16);
  reference_table().short_conv({}, args);
  for (std::int64_t t = 0; t < 20; ++t) {
    for (std::int64_t c = 0; c < 16; ++c) {
      double size = 0;
      for (std::int64_t j = 0; j < 3; ++j) {
        size += std::fabs(static_cast<double>(m.taps[static_cast<std::size_t>(c * 3 + j)]) *
                          s.columns[static_cast<std::size_t>((t + j) * 16 + c)]);
      }
      const auto at = static_cast<std::size_t>(t * 16 + c);
      size *= std::fabs(static_cast<double>(s.bcx[static_cast<std::size_t>(t * 48 + 16 + c)]));
      EXPECT_NEAR(s.out[at], want[at], size * kBf16Half * 2.1) << t << " " << c;
    }
  }
}

class CudaShortConvSizes : public ::testing::TestWithParam<std::pair<std::int64_t, std::int64_t>> {
};

// Chunks of every length up to beyond the window, mixed with padding, in slots out of order.
TEST_P(CudaShortConvSizes, AnyChunkingGivesTheSameBits) {
  const auto [d, num_taps] = GetParam();
  const Model m = make_model(d, num_taps);
  std::mt19937 rng(static_cast<std::uint32_t>(d + num_taps));
  const std::vector<std::int32_t> slot_of = {4, 0, 6, 2};
  std::vector<Sequence> sequences;
  for (std::uint32_t i = 0; i < slot_of.size(); ++i) {
    sequences.push_back(make_sequence(m, 1 + static_cast<std::int64_t>(rng() % 40), i));
  }
  Runner runner(m, 9);
  runner.clear({4, 0, 6, 2});
  std::vector<std::int64_t> done(sequences.size(), 0);
  const Sequence junk = make_sequence(m, 3, 99);
  for (int step = 0; step < 60; ++step) {
    std::vector<Runner::Part> parts;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const std::int64_t left = sequences[i].length - done[i];
      if (left == 0 || rng() % 3 == 0) continue;
      const std::int64_t length = std::min<std::int64_t>(
          left, 1 + static_cast<std::int64_t>(rng() % static_cast<unsigned>(2 * num_taps)));
      parts.push_back({&sequences[i], done[i], length, slot_of[i]});
      done[i] += length;
    }
    // Two of them leave a copy of their state somewhere inside.
    std::vector<std::pair<std::int32_t, std::vector<float>>> saved;
    for (std::size_t i = 0; i < std::min<std::size_t>(2, parts.size()); ++i) {
      Runner::Part& part = parts[i];
      const auto behind = 1 + static_cast<std::int64_t>(rng() % static_cast<unsigned>(part.length));
      part.save = {static_cast<std::int32_t>(behind), static_cast<std::int32_t>(7 + i)};
      saved.emplace_back(part.save.slot, last_columns(m, *part.sequence, part.begin + behind));
    }
    if (rng() % 2 == 0) parts.push_back({&junk, 0, 1 + static_cast<std::int64_t>(rng() % 3), -1});
    std::shuffle(parts.begin(), parts.end(), rng);
    runner.step(parts, static_cast<std::int64_t>(rng() % 3), "step " + std::to_string(step));
    if (HasFatalFailure()) return;
    for (const auto& [slot, state] : saved) {
      expect_same_bits(runner.state(slot), state, "saved in step " + std::to_string(step));
    }
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      expect_same_bits(runner.state(slot_of[i]), last_columns(m, sequences[i], done[i]),
                       "state after step " + std::to_string(step));
    }
  }
  // Slots that nobody named keep their poison.
  for (const float v : runner.state(1)) EXPECT_TRUE(std::isnan(v));
}

INSTANTIATE_TEST_SUITE_P(Sizes, CudaShortConvSizes,
                         ::testing::Values(std::pair(8, 3), std::pair(2048, 3), std::pair(24, 2),
                                           std::pair(1032, 4), std::pair(16, 16)));

// Long enough for blocks of several rows; decode steps are compared with it.
TEST(CudaShortConvTest, LongPrefillAndDecodeAgree) {
  const Model m = make_model(32, 3);
  const Sequence s = make_sequence(m, 1500, 8);
  Runner whole(m, 1);
  whole.clear({0});
  whole.step({{&s, 0, 1500, 0}}, 5, "whole");
  Runner pieces(m, 1);
  pieces.clear({0});
  pieces.step({{&s, 0, 1000, 0}}, 0, "prefill");
  pieces.step({{&s, 1000, 1, 0}}, 0, "one token");
  pieces.step({{&s, 1001, 2, 0}}, 0, "two tokens");
  pieces.step({{&s, 1003, 497, 0}}, 200, "the rest");
  expect_same_bits(pieces.state(0), whole.state(0), "state");
}

// A sequence goes on with the state that another one left half way.
TEST(CudaShortConvTest, ASavedStateIsGoneOnWith) {
  const Model m = make_model(40, 3);
  const Sequence s = make_sequence(m, 30, 12);
  Runner runner(m, 4);
  runner.clear({0});
  runner.step({{&s, 0, 25, 0, {16, 2}, {25, 3}}}, 0, "saves");
  expect_same_bits(runner.state(3), last_columns(m, s, 25), "the other");
  runner.move({{1, 2}});
  runner.step({{&s, 16, 14, 1}}, 0, "goes on");
  expect_same_bits(runner.state(1), last_columns(m, s, 30), "state");
}

TEST(CudaShortConvTest, MovesListedSlotsOfAllLayers) {
  const std::int64_t layers = 3, slots = 4, elements = 24;
  const std::int64_t stride = slots * elements + 8;
  std::vector<BFloat16> before;
  for (std::int64_t i = 0; i < layers * stride; ++i) {
    before.push_back(BFloat16{static_cast<std::uint16_t>(1 + i)});
  }
  const DeviceArray<BFloat16> state(before);
  const DeviceArray<ConvMove> list({{2, -1}, {0, 3}});
  move_conv_state(default_stream(), {.state = state.data(),
                                     .layers = layers,
                                     .layer_stride = stride,
                                     .slot_elements = elements,
                                     .moves = list.data(),
                                     .count = 2});
  const std::vector<BFloat16> got = state.read();
  for (std::int64_t i = 0; i < layers * stride; ++i) {
    const std::int64_t slot = i % stride / elements;
    const std::int64_t want = slot == 2 ? 0 : 1 + (slot == 0 ? i + 3 * elements : i);
    EXPECT_EQ(got[static_cast<std::size_t>(i)].bits, want) << i;
  }
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
