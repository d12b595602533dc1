#include "config/random_model.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <initializer_list>

namespace millrace {

namespace {

constexpr std::string_view kPrefix = "random:";

std::vector<LayerKind> layers_of(int count, std::initializer_list<int> attention) {
  std::vector<LayerKind> layers(static_cast<std::size_t>(count), LayerKind::kShortConv);
  for (const int layer : attention) layers[static_cast<std::size_t>(layer)] = LayerKind::kAttention;
  return layers;
}

// What all members of the family share.
ModelConfig family() {
  ModelConfig c;
  c.model_type = "lfm2_moe";
  c.conv_l_cache = 3;
  c.rope_theta = 1e6F;
  c.norm_eps = 1e-5F;
  c.tie_embeddings = true;
  c.num_dense_layers = 2;
  c.num_experts_per_tok = 4;
  c.bos_token_id = 1;
  c.eos_token_ids = {7};
  c.pad_token_id = 0;
  return c;
}

ModelConfig large() {
  ModelConfig c = family();
  c.hidden_size = 2048;
  c.vocab_size = 65'536;
  c.num_heads = 32;
  c.num_kv_heads = 8;
  c.head_dim = 64;
  c.max_position_embeddings = 128'000;
  return c;
}

ModelConfig lfm2_24b_a2b() {
  ModelConfig c = large();
  c.intermediate_size = 11'776;
  c.num_experts = 64;
  c.moe_intermediate_size = 1536;
  c.layers = layers_of(40, {2, 6, 10, 14, 18, 22, 26, 30, 34, 38});
  return c;
}

ModelConfig lfm2_8b_a1b() {
  ModelConfig c = large();
  c.intermediate_size = 7168;
  c.num_experts = 32;
  c.moe_intermediate_size = 1792;
  c.layers = layers_of(24, {2, 6, 10, 14, 18, 21});
  return c;
}

ModelConfig tiny() {
  ModelConfig c = family();
  c.hidden_size = 128;
  c.vocab_size = 512;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 32;
  c.max_position_embeddings = 4096;
  c.intermediate_size = 256;
  c.num_experts = 8;
  c.moe_intermediate_size = 64;
  c.layers = layers_of(6, {2, 4});
  return c;
}

struct Shape {
  std::string_view name;
  ModelConfig (*make)();
};
constexpr std::array<Shape, 3> kShapes = {
    {{"24b-a2b", lfm2_24b_a2b}, {"8b-a1b", lfm2_8b_a1b}, {"tiny", tiny}}};

const Shape* find_shape(std::string_view name) {
  for (const Shape& shape : kShapes) {
    if (shape.name == name) return &shape;
  }
  return nullptr;
}

}  // namespace

bool is_random_model(std::string_view path) { return path.starts_with(kPrefix); }

Result<RandomModel> parse_random_model(const std::string& path) {
  const auto refuse = [&path] {
    std::string names;
    for (const Shape& shape : kShapes) names += fmt::format(" {}", shape.name);
    return invalid("model.path",
                   fmt::format("'{}' must be random:SHAPE or random:SHAPE:SEED, with a shape of:{}",
                               path, names));
  };
  if (!is_random_model(path)) return refuse();
  const std::string_view rest = std::string_view(path).substr(kPrefix.size());
  const std::size_t colon = rest.find(':');
  RandomModel out;
  out.shape = rest.substr(0, colon);
  if (find_shape(out.shape) == nullptr) return refuse();
  if (colon == std::string_view::npos) return out;
  const std::string_view seed = rest.substr(colon + 1);
  const auto [end, error] = std::from_chars(seed.data(), seed.data() + seed.size(), out.seed);
  if (error != std::errc{} || end != seed.data() + seed.size()) return refuse();
  return out;
}

Result<ModelConfig> random_model_config(const std::string& path) {
  const Result<RandomModel> model = parse_random_model(path);
  if (!model) return model.error();
  return find_shape(model->shape)->make();
}

}  // namespace millrace
