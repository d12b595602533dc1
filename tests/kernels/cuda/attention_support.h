// Sequences, pages and batches for the attention tests, made without any kernel under test.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/runtime.h"
#include "kernels/table.h"

namespace millrace::kernels::cuda::testing {

struct Shape {
  AttentionShape heads;
  KvType type = KvType::kBf16;

  std::int64_t q_row() const { return std::int64_t{heads.heads} * heads.head_dim; }
  std::int64_t kv_row() const { return std::int64_t{heads.kv_heads} * heads.head_dim; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(heads.head_dim)); }
  std::string name() const {
    return "H=" + std::to_string(heads.heads) + " G=" + std::to_string(heads.kv_heads) +
           " head_dim=" + std::to_string(heads.head_dim) +
           (type == KvType::kBf16 ? " bf16" : " fp8");
  }
};

// fp8 pages of the tests: powers of two, so that values below are what the pages hold, exactly.
inline constexpr float kKScale = 0.5F;
inline constexpr float kVScale = 0.25F;

inline float as_stored(const Shape& s, float value, float scale) {
  if (s.type == KvType::kBf16) return to_f32(to_bf16(value));
  return to_f32(to_e4m3(value / scale)) * scale;
}

// Values as the device holds them: q in bf16, k and v in the pages' type.
struct Sequence {
  std::int32_t length = 0;
  std::vector<std::int32_t> blocks;
  std::vector<float> q;     // [length, H, head_dim]
  std::vector<float> k, v;  // [length, G, head_dim]
};

inline std::vector<float> random_values(std::int64_t n, std::uint32_t seed, float size) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<float> uniform(-size, size);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& x : out) x = uniform(rng);
  return out;
}

// |q| and |k| up to `size`, |v| up to 1.
inline Sequence make_sequence(const Shape& s, std::int32_t length, std::uint32_t seed,
                              float size = 2.0F) {
  Sequence out{length,
               {},
               random_values(length * s.q_row(), seed, size),
               random_values(length * s.kv_row(), seed + 1000, size),
               random_values(length * s.kv_row(), seed + 2000, 1.0F)};
  for (float& x : out.q) x = to_f32(to_bf16(x));
  for (float& x : out.k) x = as_stored(s, x, kKScale);
  for (float& x : out.v) x = as_stored(s, x, kVScale);
  return out;
}

// One layer's pages on the host, all bytes NaN until written.
struct Pages {
  Shape shape;
  std::int32_t block_size = 0;
  std::int32_t num_blocks = 0;
  std::vector<std::uint8_t> k, v;

  Pages(const Shape& s, std::int32_t block_size_, std::int32_t blocks)
      : shape(s), block_size(block_size_), num_blocks(blocks) {
    KvPages p;
    p.type = s.type;
    p.block_size = block_size;
    p.kv_heads = s.heads.kv_heads;
    p.head_dim = s.heads.head_dim;
    k.assign(static_cast<std::size_t>(num_blocks * p.block_bytes()), 0xff);
    v = k;
  }

  void write(const Sequence& q, std::int32_t begin, std::int32_t end) {
    const std::int64_t d = shape.heads.head_dim;
    for (std::int64_t p = begin; p < end; ++p) {
      for (std::int64_t g = 0; g < shape.heads.kv_heads; ++g) {
        const std::int64_t block = q.blocks[static_cast<std::size_t>(p / block_size)];
        const std::int64_t row = (block * shape.heads.kv_heads + g) * block_size + p % block_size;
        const auto from = static_cast<std::size_t>(p * shape.kv_row() + g * d);
        for (std::int64_t i = 0; i < d; ++i) {
          put(k, row * d + i, q.k[from + static_cast<std::size_t>(i)] / k_scale());
          put(v, row * d + i, q.v[from + static_cast<std::size_t>(i)] / v_scale());
        }
      }
    }
  }

  float k_scale() const { return shape.type == KvType::kBf16 ? 1.0F : kKScale; }
  float v_scale() const { return shape.type == KvType::kBf16 ? 1.0F : kVScale; }

 private:
  void put(std::vector<std::uint8_t>& pages, std::int64_t at, float value) const {
    if (shape.type == KvType::kBf16) {
      const BFloat16 bits = to_bf16(value);
      std::memcpy(&pages[static_cast<std::size_t>(2 * at)], &bits, 2);
    } else {
      pages[static_cast<std::size_t>(at)] = to_e4m3(value).bits;
    }
  }
};

// Blocks for sequences of the given lengths, dealt in a shuffled order; returns how many.
inline std::int32_t deal_blocks(std::vector<Sequence*> sequences, std::int32_t block_size,
                                std::uint32_t seed) {
  std::int32_t total = 1;  // and one that nobody owns
  for (const Sequence* q : sequences) total += (q->length + block_size - 1) / block_size;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(total));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(seed));
  auto next = ids.begin();
  for (Sequence* q : sequences) {
    q->blocks.assign(next, next + (q->length + block_size - 1) / block_size);
    next += static_cast<std::ptrdiff_t>(q->blocks.size());
  }
  return total;
}

// Rows of a step: positions [begin, begin + count) of a sequence, or padding.
struct Chunk {
  std::int32_t sequence = -1;
  std::int32_t begin = 0;
  std::int32_t count = 1;
};

struct Options {
  AttentionBatch batch = AttentionBatch::kMixed;
  std::int32_t split_units = 256;
  std::int64_t q_padding = 0;  // elements between rows of q, as in a fused qkv row
};

using Bits = std::vector<std::uint16_t>;

// What a device holds for a step, and its run. Everything is poisoned with 0xff before.
class Step {
 public:
  Step(const Pages& pages, const std::vector<Sequence>& sequences, const std::vector<Chunk>& chunks,
       const Options& options = {})
      : pages_(pages), options_(options) {
    for (const Chunk& c : chunks) tokens_.rows += c.count;
    workspace_.shape = pages.shape.heads;
    workspace_.max_rows = tokens_.rows;
    workspace_.split_units = options.split_units;
    tokens_.batch = options.batch;
    for (const Sequence& q : sequences) {
      max_blocks_ = std::max(max_blocks_, static_cast<std::int32_t>(q.blocks.size()));
    }
    const auto rows = static_cast<std::size_t>(tokens_.rows);
    q_stride_ = pages.shape.q_row() + options.q_padding;
    q_ = DeviceBuffer(rows * static_cast<std::size_t>(q_stride_) * 2);
    out_ = DeviceBuffer(rows * static_cast<std::size_t>(pages.shape.q_row()) * 2);
    ids_ = DeviceBuffer(rows * 8);
    tables_ = DeviceBuffer(sequences.size() * static_cast<std::size_t>(max_blocks_) * 4);
    k_ = DeviceBuffer(pages.k.size());
    v_ = DeviceBuffer(pages.v.size());
    work_ = DeviceBuffer(attention_workspace_bytes(workspace_));
    workspace_.data = work_.data();
    fill(stream_, work_.data(), 0xff, work_.bytes());
    load(pages, sequences, chunks);
  }

  // Other contents for the same buffers: as many rows.
  void load(const Pages& pages, const std::vector<Sequence>& sequences,
            const std::vector<Chunk>& chunks) {
    const auto row = static_cast<std::size_t>(pages.shape.q_row());
    std::vector<std::int32_t> sequence_of, position_of;
    std::vector<std::uint16_t> q(q_.bytes() / 2, 0xffff);
    for (const Chunk& c : chunks) {
      for (std::int32_t i = 0; i < c.count; ++i) {
        const std::size_t t = sequence_of.size();
        sequence_of.push_back(c.sequence);
        position_of.push_back(c.sequence < 0 ? 0 : c.begin + i);
        if (c.sequence < 0) continue;
        const Sequence& from = sequences[static_cast<std::size_t>(c.sequence)];
        for (std::size_t e = 0; e < row; ++e) {
          q[t * static_cast<std::size_t>(q_stride_) + e] =
              to_bf16(from.q[static_cast<std::size_t>(c.begin + i) * row + e]).bits;
        }
      }
    }
    std::vector<std::int32_t> tables(tables_.bytes() / 4, 0x3fffffff);
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      std::copy(sequences[s].blocks.begin(), sequences[s].blocks.end(),
                tables.begin() + static_cast<std::ptrdiff_t>(s) * max_blocks_);
    }
    const std::size_t ids_bytes = sequence_of.size() * 4;
    copy_to_device(stream_, ids_.data(), sequence_of.data(), ids_bytes);
    copy_to_device(stream_, ids_.data() + ids_bytes, position_of.data(), ids_bytes);
    copy_to_device(stream_, q_.data(), q.data(), q_.bytes());
    copy_to_device(stream_, tables_.data(), tables.data(), tables_.bytes());
    copy_to_device(stream_, k_.data(), pages.k.data(), k_.bytes());
    copy_to_device(stream_, v_.data(), pages.v.data(), v_.bytes());
    fill(stream_, out_.data(), 0xff, out_.bytes());
    tokens_.sequences = ids_.as<std::int32_t>();
    tokens_.positions = tokens_.sequences + sequence_of.size();
    synchronize(stream_, kNoDeadline);
  }

  StreamRef stream() const { return stream_; }
  void plan() { attention_plan(stream_, workspace_, tokens_); }
  void layer() {
    AttentionArgs args;
    const AttentionShape& h = pages_.shape.heads;
    args.q = heads<const BFloat16>(q_.as<BFloat16>(), tokens_.rows, h.heads, h.head_dim, q_stride_);
    args.out = heads(out_.as<BFloat16>(), tokens_.rows, h.heads, h.head_dim);
    args.pages.k = k_.data();
    args.pages.v = v_.data();
    args.pages.type = pages_.shape.type;
    args.pages.num_blocks = pages_.num_blocks;
    args.pages.block_size = pages_.block_size;
    args.pages.kv_heads = h.kv_heads;
    args.pages.head_dim = h.head_dim;
    args.pages.k_scale = pages_.k_scale();
    args.pages.v_scale = pages_.v_scale();
    args.block_tables = tables_.as<std::int32_t>();
    args.max_blocks = max_blocks_;
    args.scale = pages_.shape.scale();
    attention(stream_, workspace_, tokens_, args);
  }

  Bits result() {
    Bits out(out_.bytes() / 2);
    copy_to_host(stream_, out.data(), out_.data(), out_.bytes());
    synchronize(stream_, kNoDeadline);
    return out;
  }
  void poison_out() { fill(stream_, out_.data(), 0xff, out_.bytes()); }

 private:
  const Pages& pages_;
  Options options_;
  Stream stream_;
  AttentionWorkspace workspace_;
  AttentionTokens tokens_;
  std::int32_t max_blocks_ = 1;
  std::int64_t q_stride_ = 0;
  DeviceBuffer q_, out_, ids_, tables_, k_, v_, work_;
};

inline Bits run(const Pages& pages, const std::vector<Sequence>& sequences,
                const std::vector<Chunk>& chunks, const Options& options = {}) {
  Step step(pages, sequences, chunks, options);
  step.plan();
  step.layer();
  return step.result();
}

// Rows of `all`, which is a result for positions 0, 1, ... of one sequence.
inline Bits rows_of(const Shape& s, const Bits& all, std::int32_t begin, std::int32_t count) {
  const auto from = all.begin() + begin * s.q_row();
  return {from, from + count * s.q_row()};
}

// The reference's answer for some positions of a sequence, [positions, H, head_dim], by way of f32
// pages of the reference set.
inline std::vector<float> reference(const Shape& s, Sequence q,
                                    const std::vector<std::int32_t>& positions) {
  const AttentionShape& h = s.heads;
  const std::int64_t blocks = (q.length + 15) / 16;
  kernels::KvPages pages{nullptr, nullptr, DType::kF32, blocks, 16, h.kv_heads, h.head_dim};
  std::vector<float> k(static_cast<std::size_t>(blocks * pages.block_bytes() / 4));
  std::vector<float> v(k.size());
  pages.k = reinterpret_cast<std::byte*>(k.data());
  pages.v = reinterpret_cast<std::byte*>(v.data());
  std::vector<std::int64_t> slots(static_cast<std::size_t>(q.length));
  std::iota(slots.begin(), slots.end(), 0);
  reference_table().kv_write({}, heads<const float>(q.k.data(), q.length, h.kv_heads, h.head_dim),
                             heads<const float>(q.v.data(), q.length, h.kv_heads, h.head_dim),
                             slots, pages);
  std::vector<std::uint32_t> table(static_cast<std::size_t>(blocks));
  std::iota(table.begin(), table.end(), 0U);
  const std::uint32_t* tables[] = {table.data()};
  const auto rows = static_cast<std::int64_t>(positions.size());
  std::vector<float> rows_q;
  for (const std::int32_t p : positions) {
    const auto from = q.q.begin() + p * s.q_row();
    rows_q.insert(rows_q.end(), from, from + s.q_row());
  }
  const std::vector<std::int32_t> sequences(positions.size(), 0);
  std::vector<float> out(rows_q.size());
  reference_table().attention(
      {}, {heads<const float>(rows_q.data(), rows, h.heads, h.head_dim), pages, sequences,
           positions, tables, s.scale(), heads(out.data(), rows, h.heads, h.head_dim)});
  return out;
}

}  // namespace millrace::kernels::cuda::testing
