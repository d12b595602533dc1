// GatewayCore: sequences that their cell has not finished go on elsewhere (contract C2). The
// journal has what their clients have got; the next cell computes that again and goes on behind it,
// with the same tokens as if nothing had happened (contract C1).
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "config/check.h"
#include "net/gateway_core.h"

namespace millrace::net {

// They come before what has not begun, in the order of their admission. Streams that end here are
// left in touched_.
void GatewayCore::replay(std::vector<RequestId> ids, const std::string& reason) {
  if (ids.empty()) return;
  spdlog::warn("gateway: {} sequences look for another cell: {}", ids.size(), reason);
  std::ranges::sort(ids, std::greater{});
  for (const RequestId id : ids) {
    leave_cell(id);
    Sequence& sequence = sequences_.at(id);
    const Journal::Entry* entry = journal_.find(id);
    if (entry->request.max_new_tokens == 0 && entry->prompt_logprobs_delivered) {
      // It has all that it asked for; the end alone was still to come.
      touched_.push_back(sequence.stream);
      observe_start(sequence, {}, Clock::now());
      end_without_token(id, FinishReason::kLength, "");
    } else if (sequence.fruitless >= config_.max_replays) {
      // It may be what the cells die of.
      touched_.push_back(sequence.stream);
      fail_sequence(id, FailureCause::kCellLost,
                    fmt::format("this answer was lost with its cell, {} times without a token "
                                "between them ({}); send the request again",
                                sequence.fruitless + 1, reason));
    } else {
      requeue(id);
    }
  }
}

// Past the queue's limits: it was admitted already. New requests find that much less room.
void GatewayCore::requeue(RequestId id) {
  Sequence& sequence = sequences_.at(id);
  journal_.unassign(id);
  ++sequence.fruitless;
  sequence.queued = Clock::now();
  ++queued_sequences_;
  queued_tokens_ += sequence.prompt_tokens;
  queue_.push_front(id);
  ++stats_.replayed;
  metrics_.replayed.add();
}

void GatewayCore::leave_cell(RequestId id) {
  Sequence& sequence = sequences_.at(id);
  CHECK(sequence.in_cell, "id={}", id);
  sequence.in_cell = false;
  const Assignment& at = journal_.find(id)->at;
  const auto cell = cells_.find(at.cell_id);
  if (cell != cells_.end() && cell->second.at == at) --cell->second.assigned;
}

}  // namespace millrace::net
