// Names of element types. Apart from dtype.h, which every .cu file includes
// (kernels/cuda/stream_ref.h says why that counts).
#pragma once

#include <optional>
#include <string_view>

#include "kernels/dtype.h"

namespace millrace::kernels {

// "f32", "bf16", "q4_K" and so on: the spelling of ggml, in lower case but for the K.
std::string_view dtype_name(DType dtype);
std::optional<DType> dtype_from_name(std::string_view name);

}  // namespace millrace::kernels
