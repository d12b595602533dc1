// Reader of safetensors files. Source: the format description of huggingface/safetensors: u64
// length N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the data, which the tensors
// cover without gap or overlap.
#pragma once

#include <string>
#include <vector>

#include "config/result.h"
#include "worker/checkpoint/tensor_source.h"

namespace millrace {

// One file. Reads F32, F16 and BF16; any other dtype is kUnsupported and named. Errors: field is
// the tensor or the path, the message always names the file.
Result<std::vector<TensorEntry>> parse_safetensors(const MappedFile& file);

// What millrace pack leaves in a folder: a GGUF file with packed tensors under Hugging Face's names.
inline constexpr char kPackedFile[] = "model.packed.gguf";

// A folder: kPackedFile when that is there, else model.safetensors, else the shards of model.safetensors.index.json,
// as transformers chooses. Refuses an index that names a shard that does not exist or lies outside
// the folder, and a weight map that disagrees with what the shards hold.
Result<TensorSource> open_safetensors_folder(const std::string& folder);

Result<TensorSource> open_safetensors_file(const std::string& path);

}  // namespace millrace
