// The gateway's memory of every sequence in flight: what was asked, what has been delivered, where
// it runs. It decides which token events are passed on (contract C2: each token exactly once, in
// order) and holds all that a replay on another cell needs.
//
// Not thread-safe: one strand owns it.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "config/result.h"
#include "coordinator/request.h"

namespace millrace::net {

// Where a sequence runs. Epoch 0 with an empty cell: nowhere yet.
struct Assignment {
  std::string cell_id;
  std::uint64_t epoch = 0;

  bool operator==(const Assignment&) const = default;
};

enum class TokenVerdict : std::uint8_t {
  kDeliver,    // the next token, or a legal end: pass it on
  kDuplicate,  // already delivered: drop
  kStale,      // from an epoch or cell the sequence does not run on: drop
  kUnknown,    // no such sequence (finished or cancelled here): drop
  kBroken,  // a gap, or past the request's limits: the sequence cannot go on; end it with an error
};

struct JournalStats {
  std::uint64_t delivered = 0;
  std::uint64_t duplicates = 0;
  std::uint64_t stale = 0;
  std::uint64_t unknown = 0;
  std::uint64_t broken = 0;
};

class Journal {
 public:
  struct Entry {
    SequenceRequest request;  // `tokens` grows by each delivered token
    Assignment at;
    std::uint32_t submissions = 0;  // times handed to a cell; more than 1 after a replay
    bool prompt_logprobs_delivered = false;

    // Index of the next token this sequence expects.
    std::uint32_t next_index() const {
      return static_cast<std::uint32_t>(request.tokens.size()) - request.prompt_tokens;
    }
  };

  // `request.id` must be new, its tokens the prompt alone.
  void open(SequenceRequest request);
  // The sequence is handed to a cell: from now on only events of this cell and epoch count.
  void assign(RequestId id, const Assignment& at);
  // Its cell has not finished it: until the next assign() events count from nowhere.
  void unassign(RequestId id);
  // Forgets the sequence; later events for it are kUnknown.
  void close(RequestId id);

  // Judges an event and, on kDeliver, records its token. A kDeliver with a finish leaves the entry
  // open: the caller closes it when it has passed the event on.
  TokenVerdict on_token(const Assignment& from, const TokenEvent& event);
  // kDeliver once, and only before the first token.
  TokenVerdict on_prompt_logprobs(const Assignment& from, const PromptLogprobsEvent& event);

  // The request as it must be submitted to continue exactly after what was delivered: prompt, then
  // the delivered tokens; limits still count from the prompt (coordinator/request.h), and with
  // counter-based sampling the next draw is the one the lost cell would have made. Prompt
  // log-probabilities are not asked for twice. kNotFound when the id is not in flight.
  Result<SequenceRequest> resubmit_request(RequestId id) const;

  const Entry* find(RequestId id) const;
  std::size_t size() const { return entries_.size(); }
  const JournalStats& stats() const { return stats_; }

 private:
  TokenVerdict judge(const Entry& entry, const TokenEvent& event) const;
  TokenVerdict count(TokenVerdict verdict);

  std::unordered_map<RequestId, Entry> entries_;
  JournalStats stats_;
};

}  // namespace millrace::net
