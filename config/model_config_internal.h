// The two readers behind load_model_config and the checks they share. Internal to config.
#pragma once

#include <optional>
#include <string>

#include "config/model_config.h"

namespace millrace::model_config_detail {

// Upper bounds of every size, far above any released model. They keep each product of two sizes and
// a layer count inside 64 bits, so that a hostile file cannot make later arithmetic overflow.
inline constexpr std::int64_t kMaxWidth = 1 << 18;
inline constexpr std::int64_t kMaxVocab = 1 << 24;
inline constexpr std::int64_t kMaxLayers = 1 << 10;
inline constexpr std::int64_t kMaxExperts = 1 << 10;     // as kernels/router.h
inline constexpr std::int64_t kMaxExpertsPerToken = 64;  // as kernels/router.h
inline constexpr std::int64_t kMaxPositions = 1 << 30;
inline constexpr std::int64_t kMaxTaps = 16;  // as kernels/short_conv.h

Result<ModelConfig> load_hf_config(const std::string& folder);
Result<ModelConfig> load_gguf_config(const std::string& file);

// What must hold between fields whatever they were read from. `source` names the file.
std::optional<Error> check_consistency(const ModelConfig& config, const std::string& source);

}  // namespace millrace::model_config_detail
