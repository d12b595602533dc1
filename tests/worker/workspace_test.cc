#include "worker/workspace.h"

#include <gtest/gtest.h>

#include "tests/support/checkpoint_writer.h"
#include "worker/activations.h"

namespace millrace {
namespace {

// The plan must be what is allocated, buffer by buffer.
TEST(Workspace, ActivationsAreWhatThePlanSays) {
  for (const ModelConfig& c : {test::tiny_moe_config(), test::tiny_dense_config()}) {
    const std::int64_t expert_rows = c.num_experts > 0 ? 24 : 0;
    Activations a(c, 7, expert_rows, 5);
    std::size_t bytes = 0;
    for (const auto* m :
         {&a.hidden, &a.normed, &a.bcx, &a.mixed, &a.qkv, &a.cos, &a.sin, &a.gate, &a.up, &a.router,
          &a.expert_weights, &a.expert_out, &a.selected, &a.logits}) {
      bytes += m->bytes();
    }
    bytes += a.expert_ids.bytes();
    EXPECT_EQ(static_cast<std::int64_t>(bytes), Activations::bytes(c, 7, expert_rows, 5))
        << c.model_type;
  }
}

TEST(Workspace, GrowsWithWhatNeedsIt) {
  const ModelConfig c = test::tiny_moe_config();
  const WorkspaceLimits one{.max_step_tokens = 8, .max_sequences = 4};
  const auto bytes = [&](auto change) {
    WorkspaceLimits limits = one;
    change(limits);
    return workspace_bytes(c, limits);
  };
  const std::uint64_t base = workspace_bytes(c, one);
  EXPECT_GT(bytes([](WorkspaceLimits& l) { l.lanes = 2; }), base);
  // Ring of stages + 1 and a receive buffer: 2 + 2 times T x D floats.
  EXPECT_EQ(bytes([](WorkspaceLimits& l) { l.stages = 2; }) - base,
            4ULL * 8 * static_cast<std::uint64_t>(c.hidden_size) * 4);
  EXPECT_LT(bytes([](WorkspaceLimits& l) { l.last_stage = false; }), base);
  EXPECT_GT(bytes([](WorkspaceLimits& l) { l.max_step_tokens = 16; }), base);
}

}  // namespace
}  // namespace millrace
