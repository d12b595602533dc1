#include "worker/conv_state.h"

#include <algorithm>

namespace millrace {

ConvState::ConvState(std::int64_t conv_layers, std::int64_t slots, std::int64_t taps,
                     std::int64_t hidden) {
  const std::int64_t row = (taps - 1) * hidden;
  memory_ = kernels::Buffer(static_cast<std::size_t>(conv_layers * slots * row) * sizeof(float));
  for (std::int64_t i = 0; i < conv_layers; ++i) {
    layers_.push_back({memory_.as<float>() + i * slots * row, {slots, taps - 1, hidden}, row});
  }
}

void ConvState::move(const StateMove& move) {
  for (auto& layer : layers_) {
    float* to = layer.row(move.slot);
    if (move.from < 0) {
      std::fill_n(to, layer.cols(), 0.0F);
    } else {
      std::copy_n(layer.row(move.from), layer.cols(), to);
    }
  }
}

}  // namespace millrace
