// One lane's part of a StepPlan as the kernels want it: flat arrays over the T tokens of the step.
//
// Keeps the block table of every slot, which plans extend bit by bit. Everything is sized at start;
// load() allocates nothing. A plan that contradicts the limits or itself is an exception: the
// coordinator and this worker have lost each other, and the process must end.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/short_conv.h"
#include "worker/step.h"

namespace millrace {

struct BatchLimits {
  std::uint32_t max_tokens = 0;     // per step
  std::uint32_t max_sequences = 0;  // slots
  std::uint32_t max_context_tokens = 0;
  std::uint32_t blocks = 0;
  std::uint32_t block_tokens = 0;
  std::uint32_t snapshots = 0;  // of conv state
  std::int32_t vocab_size = 0;
  bool token_of_slot = false;  // whether kTokenOfSlot may stand for a token: with one stage
};

// The conv state that a slot starts this step with. Snapshots lie behind the slots: snapshot s has
// the conv state of slot max_sequences + s.
struct StateMove {
  std::uint32_t slot = 0;
  std::int64_t from = -1;  // a slot, or -1: zeros
};

// A row of the final hidden state whose logits are wanted.
struct LogitRow {
  std::uint32_t row = 0;  // in [0, T)
  SlotId slot = 0;
  std::uint32_t position = 0;  // of the token that follows the row
  bool sample = false;
  std::int32_t prompt_target = -1;  // or the known token whose log-probability is wanted
};

class StepBatch {
 public:
  explicit StepBatch(const BatchLimits& limits);

  // Takes the lane's plan in. Throws std::runtime_error naming what is wrong.
  void load(const LanePlan& plan);

  // The token that the slot's last chunk has drawn. From then on ids() has it in place of
  // kTokenOfSlot; without this call, as on devices, which look for it themselves, kTokenOfSlot
  // stays.
  void set_drawn(SlotId slot, std::int32_t token) { slots_[slot].drawn = token; }

  std::int64_t tokens() const { return static_cast<std::int64_t>(ids_.size()); }
  std::span<const std::int32_t> ids() const { return ids_; }              // [T]
  std::span<const std::int32_t> positions() const { return positions_; }  // [T]
  std::span<const std::int32_t> sequences() const {
    return sequences_;
  }  // [T], into block_tables()
  std::span<const std::uint32_t* const> block_tables() const { return tables_; }  // [chunks]
  // [T], kernels::kNoKvSlot where it is there already
  std::span<const std::int64_t> kv_slots() const { return kv_slots_; }
  std::span<const kernels::ConvSegment> segments() const { return segments_; }  // [chunks]
  std::span<const StateMove> state_moves() const { return state_moves_; }
  std::span<const LogitRow> logit_rows() const { return logit_rows_; }

 private:
  struct SlotState {
    bool bound = false;
    bool fresh = false;        // no chunk yet
    std::uint32_t length = 0;  // positions fed so far
    bool drew = false;         // the chunk before this one, in this sequence
    std::int32_t drawn = kTokenOfSlot;
    std::vector<BlockId> blocks;
  };

  void load_chunk(const Chunk& chunk);
  void check_chunk(const Chunk& chunk) const;
  void check_snapshots(const Chunk& chunk);
  // How many blocks the slot has from this chunk on.
  std::size_t blocks_of(const Chunk& chunk) const;

  BatchLimits limits_;
  std::vector<SlotState> slots_;
  std::vector<std::int32_t> ids_, positions_, sequences_;
  std::vector<const std::uint32_t*> tables_;
  std::vector<std::int64_t> kv_slots_;
  std::vector<kernels::ConvSegment> segments_;
  std::vector<StateMove> state_moves_;
  std::vector<bool> saved_;  // [snapshots], in this step
  std::vector<LogitRow> logit_rows_;
};

}  // namespace millrace
