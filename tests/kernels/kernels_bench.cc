// Throughput of the CPU kernels, beside this machine's own ceilings measured in the same run.
//
//   kernels_bench [threads] [set ...]
//   kernels_bench [threads] ceilings    the machine's limits alone, as one JSON object
//
// Decode figures stream weights of more than the last-level cache (several matrices in turn) and
// are GB/s of stored weight; prefill figures are GFLOP/s, a multiply and an add counted as two.
// Each figure is the median of repeated runs.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/buffer.h"
#include "kernels/dtype_name.h"
#include "kernels/table.h"
#include "tests/kernels/packed_bench.h"

namespace millrace::kernels {
namespace {

constexpr double kBudget = 0.4;  // seconds a figure

// Of one thread its own CPU time is taken, which a busy machine does not stretch.
bool cpu_time = true;

double now() {
  timespec t{};
  clock_gettime(cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace

double seconds(const std::function<void()>& run, double budget) {
  run();
  double best = 1e9;
  for (double spent = 0; spent < budget;) {
    const double start = now();
    run();
    const double took = now() - start;
    best = std::min(best, took);
    spent += took;
  }
  return best;
}

namespace {

void fill(float* p, std::int64_t n, std::uint32_t seed) {
  std::mt19937 rng(seed);
  for (std::int64_t i = 0; i < n; ++i) p[i] = static_cast<float>(rng() % 2048) / 1024.0F - 1.0F;
}

// Bytes whose every 16-bit half is an ordinary small number in f16, bf16 and as a scale.
void fill_weights(Buffer& b) {
  std::mt19937 rng(7);
  for (std::size_t i = 0; i < b.bytes(); ++i) b.data()[i] = static_cast<std::byte>(rng() & 0x3f);
}

struct Bench {
  const KernelTable& table;
  Context context;
  Buffer weights{std::size_t{192} << 20};

  // One token through matrices that together exceed the caches.
  void gemv(DType dtype, std::int64_t n, std::int64_t k) {
    const std::int64_t bytes = n * row_bytes(dtype, k);
    const std::int64_t count = static_cast<std::int64_t>(weights.bytes()) / bytes;
    MatrixBuffer<float> x(1, k);
    MatrixBuffer<float> y(1, n);
    fill(x.view().data, k, 1);
    const double s = seconds(
        [&] {
          for (std::int64_t i = 0; i < count; ++i) {
            const WeightView w{weights.data() + i * bytes, dtype, n, k};
            table.gemm(context, x.view(), w, Accumulate::kStore, y.view());
          }
        },
        kBudget);
    fmt::print("  gemm T=1   {:5} [{}, {}]  {:6.1f} GB/s  {:6.2f} Gweights/s\n", dtype_name(dtype),
               n, k, static_cast<double>(bytes * count) / s * 1e-9,
               static_cast<double>(n * k * count) / s * 1e-9);
  }

  void prefill(DType dtype, std::int64_t t, std::int64_t n, std::int64_t k) {
    MatrixBuffer<float> x(t, k);
    MatrixBuffer<float> y(t, n);
    fill(x.view().data, t * k, 1);
    const WeightView w{weights.data(), dtype, n, k};
    const double s =
        seconds([&] { table.gemm(context, x.view(), w, Accumulate::kStore, y.view()); }, kBudget);
    fmt::print("  gemm T={:<3} {:5} [{}, {}]  {:6.1f} GFLOP/s\n", t, dtype_name(dtype), n, k,
               2e-9 * static_cast<double>(t * n * k) / s);
  }

  // One decode token of the 24B's attention shape at a long prefix.
  void attention(DType dtype, std::int64_t t, std::int64_t prefix) {
    const std::int64_t block = 32;
    KvPages pages{nullptr, nullptr, dtype, (prefix + block) / block, block, 8, 64};
    Buffer k(static_cast<std::size_t>(pages.num_blocks * pages.block_bytes()));
    Buffer v(k.bytes());
    pages.k = k.data();
    pages.v = v.data();
    std::vector<std::uint32_t> blocks;
    for (std::int64_t i = 0; i < pages.num_blocks; ++i)
      blocks.push_back(static_cast<std::uint32_t>(i));
    const std::uint32_t* tables[] = {blocks.data()};
    const std::vector<std::int32_t> sequences(static_cast<std::size_t>(t), 0);
    std::vector<std::int32_t> positions;
    for (std::int64_t i = 0; i < t; ++i)
      positions.push_back(static_cast<std::int32_t>(prefix - t + i));
    MatrixBuffer<float> q(t, 2048);
    MatrixBuffer<float> out(t, 2048);
    fill(q.view().data, t * 2048, 3);
    const double s = seconds(
        [&] {
          table.attention(context, {heads<const float>(q.view().data, t, 32, 64), pages, sequences,
                                    positions, tables, 0.125F, heads(out.view().data, t, 32, 64)});
        },
        kBudget);
    const double flop = 4.0 * 2048 * static_cast<double>(t * prefix);
    fmt::print(
        "  attention T={:<3} prefix {} kv {:4}  {:7.3f} ms  {:6.1f} GFLOP/s  {:5.1f} GB/s of kv\n",
        t, prefix, dtype_name(dtype), s * 1e3, flop / s * 1e-9,
        2.0 * static_cast<double>(k.bytes()) / s * 1e-9);
  }

  // The 24B's experts: 64 x [3072, 2048], top-4 of T tokens spread evenly.
  void experts(DType dtype, std::int64_t t) {
    const std::int64_t e = 16, n = 3072, k = 2048;
    MatrixBuffer<float> x(t * 4, k);
    MatrixBuffer<float> y(t * 4, n);
    fill(x.view().data, t * 4 * k, 5);
    std::vector<WeightView> w;
    std::vector<std::int64_t> offsets{0};
    for (std::int64_t i = 0; i < e; ++i) {
      w.push_back({weights.data() + i * n * row_bytes(dtype, k), dtype, n, k});
      offsets.push_back((i + 1) * t * 4 / e);
    }
    const double s = seconds(
        [&] {
          table.grouped_gemm(context, {x.view(), {}, offsets, w, y.view()});
        },
        kBudget);
    fmt::print("  grouped_gemm {} experts T={:<3} {:5}  {:6.1f} GFLOP/s\n", e, t, dtype_name(dtype),
               2e-9 * static_cast<double>(t * 4 * n * k) / s);
  }

  void swiglu() {
    MatrixBuffer<float> x(256, 3072);
    fill(x.view().data, 256 * 3072, 9);
    MatrixBuffer<float> y(256, 1536);
    const double s = seconds(
        [&] {
          table.swiglu(context, x.view().slice_cols(0, 1536), x.view().slice_cols(1536, 1536),
                       y.view());
        },
        kBudget);
    fmt::print("  swiglu [256, 1536]  {:6.2f} Gvalues/s\n", 256e-9 * 1536 / s);
  }
};

// The rate at which all threads together read memory that no cache holds.
double read_bandwidth(const Context& context, const Buffer& b) {
  const auto words = static_cast<std::int64_t>(b.bytes() / 8);
  std::vector<std::uint64_t> sums(64);
  const double s = seconds(
      [&] {
        parallel_for(context, words, 1, [&](std::int64_t begin, std::int64_t end) {
          const auto* p = reinterpret_cast<const std::uint64_t*>(b.data());
          std::uint64_t a = 0, c = 0, d = 0, e = 0;
          for (std::int64_t i = begin; i + 32 <= end; i += 32) {
            a += p[i];
            c += p[i + 8];
            d += p[i + 16];
            e += p[i + 24];
          }
          sums[static_cast<std::size_t>(begin * 2 / words)] = a + c + d + e;
        });
      },
      kBudget);
  return static_cast<double>(b.bytes()) / s * 1e-9 + (sums[0] == 1 ? 1e-12 : 0);
}

void run(const KernelTable& table, const Context& context) {
  Bench b{table, context};
  fill_weights(b.weights);
  fmt::print("{}: memory read {:.1f} GB/s\n", table.name, read_bandwidth(context, b.weights));
  for (const DType d : {DType::kF32, DType::kBF16, DType::kF16, DType::kQ8_0, DType::kQ4_0,
                        DType::kQ4_K, DType::kQ6_K}) {
    b.gemv(d, 3072, 2048);
  }
  b.gemv(DType::kBF16, 2048, 11776);
  for (const DType d : {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K}) {
    b.prefill(d, 256, 3072, 2048);
  }
  b.prefill(DType::kBF16, 256, 2048, 11776);
  for (const std::int64_t t : {4, 8, 16, 32}) b.prefill(DType::kBF16, t, 3072, 2048);
  b.experts(DType::kBF16, 256);
  b.experts(DType::kBF16, 16);
  b.attention(DType::kF32, 1, 4096);
  b.attention(DType::kBF16, 1, 4096);
  b.attention(DType::kF32, 64, 1024);
  b.attention(DType::kBF16, 256, 2048);
  b.swiglu();
  if (table.name != "reference") run_packed(table.name, context, b.weights);
}

// Memory far beyond the caches, as a model's weights are.
void print_ceilings(const Context& context) {
  Buffer memory(std::size_t{1} << 30);
  parallel_for(context, static_cast<std::int64_t>(memory.bytes() / 4096), 1,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t page = begin; page < end; ++page) {
                   memory.data()[page * 4096] = std::byte{1};
                 }
               });
  fmt::print("{{\"read_gb_per_s\": {:.2f}, \"int8_gop_per_s\": {:.1f}}}\n",
             read_bandwidth(context, memory), int8_ceiling(isa_name(best_isa()), context));
}

}  // namespace
}  // namespace millrace::kernels

int main(int argc, char** argv) {
  using namespace millrace::kernels;
  ThreadPool pool(argc > 1 ? std::max(1, std::atoi(argv[1])) : 1);
  cpu_time = pool.threads() == 1;
  std::vector<std::string> sets(argv + std::min(argc, 2), argv + argc);
  if (sets.empty()) sets = {"auto"};
  if (sets.front() == "ceilings") {
    print_ceilings({&pool});
    return 0;
  }
  for (const std::string& set : sets) {
    const auto table = select_table(set);
    if (!table) {
      fmt::print(stderr, "{}\n", table.error().to_string());
      return 1;
    }
    run(**table, {&pool});
  }
}
