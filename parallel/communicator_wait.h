// The waiting loop of Communicator, shared by communicator.cc and collectives.cc only.
#pragma once

#include <algorithm>
#include <utility>

#include "parallel/communicator.h"

namespace millrace::parallel {

// Runs one public call: refuses it on a broken communicator, and breaks this one when it throws.
template <class Body>
auto Communicator::guarded(const char* operation, Body body) {
  if (failure_) {
    throw CommError(operation, kNoPeer, options_.deadline, "failed earlier: " + *failure_);
  }
  try {
    return body();
  } catch (const CommError& error) {
    failure_ = error.what();
    abandon();
    throw;
  }
}

// True when ready() became true within `limit`.
template <class Ready>
bool Communicator::wait_until(const char* operation, std::chrono::microseconds limit, Ready ready) {
  Backoff backoff(options_.backoff);
  while (!ready()) {
    check_abort(operation);
    const std::chrono::microseconds advised = backoff.next();
    const auto left =
        std::chrono::duration_cast<std::chrono::microseconds>(limit - backoff.waited());
    if (left.count() <= 0) return ready();
    if (advised.count() > 0) wait_event(advised, left);
  }
  return true;
}

// `peer` is read on failure, so `ready` may keep it at the rank still waited for.
template <class Ready>
void Communicator::wait_or_fail(const char* operation, const int& peer, Ready ready) {
  if (!wait_until(operation, options_.deadline, std::move(ready))) {
    throw CommError(operation, peer, options_.deadline, "no answer in time");
  }
}

}  // namespace millrace::parallel
