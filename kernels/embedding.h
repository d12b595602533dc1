// Embedding: out[t] = row ids[t] of the table, as f32.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

// ids [T], each in [0, table.rows); table [V, D] of any dtype; out [T, D]. No scaling, no norm.
using EmbeddingOp = void(const Context& context, std::span<const std::int32_t> ids,
                         const WeightView& table, MatrixView<float> out);

// Our own bugs (shapes, ids out of range) abort here; every implementation calls it first.
void check_embedding(std::span<const std::int32_t> ids, const WeightView& table,
                     MatrixView<float> out);

}  // namespace millrace::kernels
