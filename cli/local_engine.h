// A model run inside this process for the command line: no gateway, no HTTP.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "cli/cell_setup.h"
#include "cli/embedded_cell.h"
#include "config/result.h"

namespace millrace {

class LocalEngine {
 public:
  // Loads the model; `on_loading` gets the share loaded. The config's grid runs as threads.
  static Result<std::unique_ptr<LocalEngine>> start(ClusterConfig config,
                                                    std::function<void(double)> on_loading);
  ~LocalEngine();

  const CellSetup& setup() const { return setup_; }

  // Runs one sequence to its end on the calling thread's time. `on_token` may return false to
  // cancel; nothing else gives kCancelled. The error is a failed sequence or cell; a cell that has
  // failed takes no further sequence.
  Result<FinishReason> generate(
      SequenceRequest request, const std::function<bool(const TokenEvent&)>& on_token,
      const std::function<void(const PromptLogprobsEvent&)>& on_prompt = {});

  // Submits all sequences at once and runs them to their ends; `on_step` gets the events of one
  // step at a time, as they come, with the index of its request as an event's id. The error is the
  // first failed sequence or cell.
  Result<void> run(std::vector<SequenceRequest> requests,
                   const std::function<void(std::span<const TokenEvent>)>& on_step);

 private:
  // The first: of one step.
  using Event = std::variant<std::vector<TokenEvent>, PromptLogprobsEvent>;

  explicit LocalEngine(CellSetup setup);
  Event next();
  Result<void> submit(SequenceRequest request);
  void cancel(RequestId id);
  // What has become of the sequence, once it has ended.
  std::optional<Result<FinishReason>> take(const std::vector<TokenEvent>& events, RequestId id,
                                           const std::function<bool(const TokenEvent&)>& on_token);

  CellSetup setup_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Event> events_;
  RequestId next_id_ = 1;
  Cell* cell_ = nullptr;  // while it runs
  std::unique_ptr<EmbeddedCell> ranks_;
};

}  // namespace millrace
