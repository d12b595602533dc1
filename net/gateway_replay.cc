// GatewayCore: sequences that their cell has not finished go on elsewhere (contract C2). The
// journal has what their clients have got; the next cell computes that again and goes on behind it,
// with the same tokens as if nothing had happened (contract C1).
#include <spdlog/spdlog.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "config/check.h"
#include "net/gateway_core.h"

namespace millrace::net {

namespace {

// After so many cells lost without a token, what they died of may be among the sequences that were
// in them. From then on a cell gets only one such at a time, and the next when that has got a
// token: the others come free, and the one that it was is lost alone.
constexpr std::uint32_t kSuspicious = 2;

}  // namespace

// They come before what has not begun, in the order of their admission. Streams that end here are
// left in touched_.
void GatewayCore::replay(std::vector<RequestId> ids, Unfinished how, const std::string& reason) {
  std::ranges::sort(ids, std::greater{});
  const auto twice = std::ranges::unique(ids);
  ids.erase(twice.begin(), twice.end());
  std::erase_if(ids, [this](RequestId id) {
    const auto it = sequences_.find(id);
    return it == sequences_.end() || !it->second.in_cell;
  });
  if (ids.empty()) return;
  spdlog::log(how == Unfinished::kLost ? spdlog::level::warn : spdlog::level::info,
              "gateway: {} sequences look for another cell: {}", ids.size(), reason);
  for (const RequestId id : ids) {
    leave_cell(id);
    Sequence& sequence = sequences_.at(id);
    const Journal::Entry* entry = journal_.find(id);
    const std::uint32_t wanted = entry->request.max_new_tokens;
    if (wanted > 0 ? entry->next_index() >= wanted : entry->prompt_logprobs_delivered) {
      // It has all that it asked for; the end alone was still to come.
      touched_.push_back(sequence.stream);
      if (wanted == 0) observe_start(sequence, {}, Clock::now());
      end_without_token(id, FinishReason::kLength, "");
    } else if (how == Unfinished::kRefused) {
      requeue(id);  // its wait goes on
    } else if (sequence.fruitless >= config_.max_replays) {
      touched_.push_back(sequence.stream);
      fail_sequence(id, FailureCause::kCellLost,
                    fmt::format("this answer was lost with its cell, {} times without a token "
                                "between them ({}); send the request again",
                                sequence.fruitless + 1, reason));
    } else {
      ++sequence.fruitless;
      sequence.queued = Clock::now();
      ++stats_.replayed;
      metrics_.replayed.add();
      requeue(id);
    }
  }
}

// Past the queue's limits: it was admitted already. New requests find that much less room.
void GatewayCore::requeue(RequestId id) {
  journal_.unassign(id);
  ++queued_sequences_;
  queued_tokens_ += sequences_.at(id).prompt_tokens;
  queue_.push_front(id);
}

void GatewayCore::leave_cell(RequestId id) {
  Sequence& sequence = sequences_.at(id);
  CHECK(sequence.in_cell, "id={}", id);
  absolve(id, sequence);
  sequence.in_cell = false;
  if (Cell* cell = cell_of(id)) --cell->assigned;
}

bool GatewayCore::suspicious(const Sequence& sequence) { return sequence.fruitless >= kSuspicious; }

// It has just been handed to the cell.
void GatewayCore::suspect(Sequence& sequence, Cell& cell) {
  if (!suspicious(sequence)) return;
  sequence.suspect = true;
  ++cell.suspects;
}

// It has got a token, or leaves its cell: the next one's turn. That their turns come one by one is
// no want of cells, so the wait of the others begins again; there is one fewer of them each time.
void GatewayCore::absolve(RequestId id, Sequence& sequence) {
  if (!std::exchange(sequence.suspect, false)) return;
  if (Cell* cell = cell_of(id)) --cell->suspects;
  for (const RequestId waiting : queue_) {
    Sequence& other = sequences_.at(waiting);
    if (suspicious(other)) other.queued = Clock::now();
  }
}

// The cell that it was handed to, unless that has been started anew.
GatewayCore::Cell* GatewayCore::cell_of(RequestId id) {
  const Assignment& at = journal_.find(id)->at;
  const auto cell = cells_.find(at.cell_id);
  return cell != cells_.end() && cell->second.at == at ? &cell->second : nullptr;
}

}  // namespace millrace::net
