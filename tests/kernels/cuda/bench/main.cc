// kernels_cuda_bench: every kernel of kernels/cuda at the shapes of LFM2-24B-A2B and LFM2-8B-A1B.
// docs/performance-log.md has what it should find. Built for the emulator too
// (kernels_cuda_emulated_bench), where only --smoke makes sense.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>

#include "tests/kernels/cuda/bench/bench.h"

namespace millrace::kernels::cuda::bench {
namespace {

Shapes shapes_of(const std::string& model, bool smoke) {
  Shapes m;
  m.name = model;
  if (model == "8b") {
    m.dense = 7168;
    m.experts = 32;
    m.expert = 1792;
  }
  if (smoke) {
    m.hidden = 128;
    m.heads = 4;
    m.kv_heads = 2;
    m.head_dim = 64;
    m.dense = 192;
    m.experts = 8;
    m.expert = 64;
    m.vocab = 512;
    m.decode = {1, 3};
    m.prefill = 40;
  }
  return m;
}

int run(int argc, char** argv) {
  CLI::App app{"Rates of the CUDA kernels beside the ceilings of the same run"};
  Options o;
  std::vector<std::string> models = {"24b", "8b"}, groups;
  app.add_option("--model", models, "24b, 8b")->check(CLI::IsMember({"24b", "8b"}));
  app.add_option("--group", groups, "gemms, experts, attention, elementwise, sampling; all")
      ->check(CLI::IsMember({"gemms", "experts", "attention", "elementwise", "sampling"}));
  app.add_option("--filter", o.filter, "only cases whose name contains this");
  app.add_option("--json", o.json, "append a JSON line for each figure to this file");
  app.add_option("--commit", o.commit, "for the JSON lines");
  app.add_option("--samples", o.samples)->check(CLI::Range(20, 10'000));
  app.add_flag("--smoke", o.smoke, "tiny shapes, two samples");
  CLI11_PARSE(app, argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--json" || word == "--commit") {
      ++i;
      continue;
    }
    o.command += " " + word;
  }
  if (device_count() == 0) {
    fmt::print(stderr, "kernels_cuda_bench: no CUDA device\n");
    return 77;
  }
  Bench bench(o);
  bench.print_header();
  run_ceilings(bench);
  const std::vector<std::pair<std::string, void (*)(Bench&, const Shapes&)>> all = {
      {"gemms", run_gemms},
      {"experts", run_experts},
      {"attention", run_attention},
      {"elementwise", run_elementwise},
      {"sampling", run_sampling}};
  for (const std::string& model : models) {
    const Shapes shapes = shapes_of(model, o.smoke);
    for (const auto& [name, group] : all) {
      const bool asked = groups.empty() || std::ranges::count(groups, name) > 0;
      // Attention, activations and sampling are the same for both.
      const bool same = model != models.front() && name != "gemms" && name != "experts";
      if (!asked || same) continue;
      try {
        group(bench, shapes);
      } catch (const CudaError& error) {
        fmt::print("{} {}: FAILED: {}\n", model, name, error.what());
        return 1;
      }
    }
  }
  return bench.failures() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace millrace::kernels::cuda::bench

int main(int argc, char** argv) {
  try {
    return millrace::kernels::cuda::bench::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "kernels_cuda_bench: {}\n", error.what());
    return 1;
  }
}
