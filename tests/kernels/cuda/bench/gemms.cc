// Ceilings, and the dense products.
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>

#include "tests/kernels/cuda/bench/bench.h"

namespace millrace::kernels::cuda::bench {

namespace {

enum class Kind { kStoreBf16, kStoreF32, kAdd, kSwiGlu };

struct Product {
  std::string name;
  std::int64_t tokens = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  WeightFormat format = WeightFormat::kBf16;
  Kind kind = Kind::kStoreBf16;
};

double weight_bytes(const Product& p) {
  const auto values = static_cast<double>(p.rows * p.cols);
  return p.format == WeightFormat::kBf16 ? 2 * values : values * (1 + 1.0 / 64);
}

double output_bytes(const Product& p) {
  const auto values = static_cast<double>(p.tokens * p.rows);
  switch (p.kind) {
    case Kind::kStoreBf16:
      return 2 * values;
    case Kind::kStoreF32:
      return 4 * values;
    case Kind::kAdd:
      return 8 * values;
    case Kind::kSwiGlu:
      return values;
  }
  return 0;
}

GemmOutput output_of(const Product& p, const DeviceBuffer& y) {
  switch (p.kind) {
    case Kind::kStoreBf16:
      return GemmOutput::store(matrix(y.as<BFloat16>(), p.tokens, p.rows));
    case Kind::kStoreF32:
      return GemmOutput::store(matrix(y.as<float>(), p.tokens, p.rows));
    case Kind::kAdd:
      return GemmOutput::add(matrix(y.as<float>(), p.tokens, p.rows));
    case Kind::kSwiGlu:
      break;
  }
  return GemmOutput::swiglu(matrix(y.as<BFloat16>(), p.tokens, p.rows / 2));
}

Figure run_product(Bench& bench, const Product& p) {
  if (!bench.wants(p.name)) return {};
  const StreamRef stream = bench.stream();
  const int sets = bench.cold_sets(weight_bytes(p), 48);
  const Weights w(stream, p.format, p.rows, p.cols, sets);
  const DeviceBuffer x = random_bf16(stream, sets * p.tokens * p.cols, 1);
  const DeviceBuffer y = random_f32(stream, p.tokens * p.rows, 2);
  const Workspace workspace(stream, gemm_workspace(p.format, p.tokens, p.rows, p.cols));
  Case c;
  c.name = p.name;
  c.bytes = weight_bytes(p) + static_cast<double>(2 * p.tokens * p.cols) + output_bytes(p);
  c.flop = 2.0 * static_cast<double>(p.tokens) * static_cast<double>(p.rows * p.cols);
  c.sets = sets;
  c.launch = [&](StreamRef s, int set) {
    GemmArgs args;
    args.x = matrix<const BFloat16>(x.as<BFloat16>() + set * p.tokens * p.cols, p.tokens, p.cols);
    args.w = w.at(set);
    args.y = output_of(p, y);
    args.workspace = workspace.view();
    gemm(s, args);
  };
  return bench.run(c);
}

// cuBLAS where it is installed, by its C interface: it is the ceiling, not a part of ours.
class Cublas {
 public:
  Cublas() {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
      library_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (library_ != nullptr) break;
    }
    if (library_ == nullptr) return;
    create_ = reinterpret_cast<Create>(dlsym(library_, "cublasCreate_v2"));
    set_stream_ = reinterpret_cast<SetStream>(dlsym(library_, "cublasSetStream_v2"));
    gemm_ = reinterpret_cast<GemmEx>(dlsym(library_, "cublasGemmEx"));
    ready_ =
        create_ != nullptr && set_stream_ != nullptr && gemm_ != nullptr && create_(&handle_) == 0;
  }

  bool ready() const { return ready_; }

  // y [T, N] = x [T, K] w [N, K]^T, all bf16 and row-major.
  int run(StreamRef stream, const void* x, const void* w, void* y, int t, int n, int k) const {
    constexpr int kTransposed = 1, kPlain = 0, kBf16 = 14, kComputeF32 = 68, kDefault = -1;
    const float one = 1, zero = 0;
    if (const int code = set_stream_(handle_, stream.handle); code != 0) return code;
    return gemm_(handle_, kTransposed, kPlain, n, t, k, &one, w, kBf16, k, x, kBf16, k, &zero, y,
                 kBf16, n, kComputeF32, kDefault);
  }

 private:
  using Create = int (*)(void**);
  using SetStream = int (*)(void*, void*);
  using GemmEx = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int,
                         const void*, int, int, const void*, void*, int, int, int, int);
  void* library_ = nullptr;
  void* handle_ = nullptr;
  Create create_ = nullptr;
  SetStream set_stream_ = nullptr;
  GemmEx gemm_ = nullptr;
  bool ready_ = false;
};

double rate_of(const Figure& f, double work, double unit) {
  return f.us > 0 ? work / f.us * 1e6 / unit : 0;
}

}  // namespace

void run_ceilings(Bench& bench) {
  const StreamRef stream = bench.stream();
  const bool smoke = bench.options().smoke;
  {
    const std::int64_t bytes = smoke ? 1 << 16 : std::int64_t{2} << 30;
    const DeviceBuffer from = random_bf16(stream, bytes / 2, 3);
    const DeviceBuffer to(static_cast<std::size_t>(bytes));
    Case copy;
    copy.name = "ceiling copy on the device";
    copy.bytes = 2.0 * static_cast<double>(bytes);
    copy.launch = [&](StreamRef s, int) { copy_on_device(s, to.data(), from.data(), to.bytes()); };
    bench.set_copy_rate(rate_of(bench.run(copy), copy.bytes, 1e9));
  }
  const std::int64_t n = smoke ? 128 : 8192;
  const double flop = 2.0 * static_cast<double>(n) * static_cast<double>(n * n);
  double best = rate_of(run_product(bench, {"ceiling own gemm bf16 8192^3", n, n, n}), flop, 1e12);
  const Cublas cublas;
  if (cublas.ready() && !smoke) {
    const DeviceBuffer x = random_bf16(stream, n * n, 4);
    const DeviceBuffer w = random_bf16(stream, n * n, 5, n);
    const DeviceBuffer y(static_cast<std::size_t>(2 * n * n));
    Case c;
    c.name = "ceiling cuBLAS gemm bf16 8192^3";
    c.flop = flop;
    c.graph = false;
    c.launch = [&](StreamRef s, int) {
      const auto size = static_cast<int>(n);
      const int code = cublas.run(s, x.data(), w.data(), y.data(), size, size, size);
      if (code != 0) throw CudaError("cublasGemmEx", code, "see cublasStatus_t");
    };
    best = std::max(best, rate_of(bench.run(c), flop, 1e12));
  } else {
    fmt::print("no cuBLAS here: the arithmetic ceiling is our own product's\n");
  }
  bench.set_gemm_rate(best);
}

void run_gemms(Bench& bench, const Shapes& m) {
  std::vector<std::int64_t> tokens = m.decode;
  tokens.push_back(m.prefill);
  const std::int64_t d = m.hidden;
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8E4M3}) {
    for (const std::int64_t t : tokens) {
      const auto name = [&](const char* what) {
        return fmt::format("{} {} T={} {}", m.name, what, t, name_of(format));
      };
      run_product(bench, {name("conv in_proj"), t, 3 * d, d, format});
      run_product(bench, {name("qkv"), t, m.qkv(), d, format});
      run_product(bench, {name("out_proj"), t, d, d, format, Kind::kAdd});
      run_product(bench, {name("dense gate+up"), t, 2 * m.dense, d, format, Kind::kSwiGlu});
      run_product(bench, {name("dense down"), t, d, m.dense, format, Kind::kAdd});
      if (format != WeightFormat::kBf16) continue;
      run_product(bench, {name("router gemm"), t, m.experts, d, format, Kind::kStoreF32});
      if (t <= m.decode.back()) {
        run_product(bench, {name("lm_head"), t, m.vocab, d, format, Kind::kStoreF32});
      }
    }
  }
}

}  // namespace millrace::kernels::cuda::bench
