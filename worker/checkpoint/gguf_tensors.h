// Tensors of a GGUF file under Hugging Face's names.
// Source: the lfm2 and lfm2moe tables of gguf-py (constants.py, tensor_mapping.py) of llama.cpp.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "config/gguf_file.h"
#include "config/result.h"
#include "worker/checkpoint/tensor_source.h"

namespace millrace {

// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; nothing for a name that LFM2
// does not have. Expert stacks become experts.w1 / w3 / w2.weight, a fused one
// experts.gate_up_proj. token_embd_norm is the final norm in spite of its name.
std::optional<std::string> hf_name_of_gguf(std::string_view gguf_name);

// How a file stores tensors of a type.
GgmlType ggml_type_of(kernels::DType dtype);

// Tensors without a Hugging Face name keep their own, to be refused as surplus. Refuses block
// formats that the kernels do not read (kUnsupported, names the tensor).
Result<TensorSource> open_gguf(const std::string& path);

}  // namespace millrace
