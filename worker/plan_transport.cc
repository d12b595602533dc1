#include "worker/plan_transport.h"

#include <span>
#include <stdexcept>

#include "config/wire.h"
#include "worker/step_codec.h"

namespace millrace {

namespace {

constexpr int kPlanTag = 1;
constexpr int kResultTag = 2;
constexpr int kReportTag = 3;
constexpr int kWorkerReportTag = 4;
constexpr std::chrono::milliseconds kPoll{1000};

std::span<const std::uint8_t> octets(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
}

std::span<const std::byte> bytes_of(const std::vector<std::uint8_t>& octets) {
  return std::as_bytes(std::span(octets));
}

void must(const Result<void>& result) {
  if (!result) throw std::runtime_error(result.error().to_string());
}

}  // namespace

void PlanReceiver::report(const StartReport& report) {
  out_.clear();
  WireWriter w(out_);
  w.i32(report.rank);
  w.u8(static_cast<std::uint8_t>(report.kind));
  w.u64(report.bytes_done);
  w.u64(report.bytes_total);
  w.string(report.detail);
  world_.post(0, kReportTag, bytes_of(out_));
  world_.progress();
}

std::optional<StartReport> PlanSender::next_report(std::chrono::milliseconds timeout) {
  if (!world_.recv_any(kReportTag, in_, timeout)) return std::nullopt;
  WireReader r(octets(in_));
  StartReport report;
  report.rank = r.i32("rank");
  report.kind = r.enumerator("kind", StartReport::Kind::kFailed);
  report.bytes_done = r.u64("bytes_done");
  report.bytes_total = r.u64("bytes_total");
  r.string("detail", report.detail);
  must(r.finish("start report"));
  return report;
}

const StepPlan& PlanReceiver::next() {
  while (!world_.recv_any(kPlanTag, in_, kPoll)) {
  }
  must(decode(octets(in_), plan_));
  return plan_;
}

const StepPlan* PlanReceiver::poll() {
  if (!world_.try_recv(0, kPlanTag, in_)) return nullptr;
  must(decode(octets(in_), plan_));
  return &plan_;
}

void PlanReceiver::answer(const StepResult& result) {
  encode(result, out_);
  world_.post(0, kResultTag, bytes_of(out_));
}

void PlanReceiver::report(const WorkerReport& report) {
  encode(report, out_);
  world_.post(0, kWorkerReportTag, bytes_of(out_));
}

std::optional<WorkerReport> PlanSender::worker_report() {
  if (!world_.try_recv(parallel::kAnyPeer, kWorkerReportTag, in_)) return std::nullopt;
  WorkerReport report;
  must(decode(octets(in_), report));
  return report;
}

void PlanSender::send(const StepPlan& plan) {
  encode(plan, out_);
  for (int rank = 1; rank < world_.size(); ++rank) world_.post(rank, kPlanTag, bytes_of(out_));
  if (plan.shutdown) world_.flush();
}

std::optional<StepResult> PlanSender::receive(std::chrono::microseconds timeout) {
  const auto wait = std::chrono::duration_cast<std::chrono::milliseconds>(timeout);
  if (!world_.recv_any(kResultTag, in_, std::max(wait, std::chrono::milliseconds(1)))) {
    return std::nullopt;
  }
  StepResult result;
  must(decode(octets(in_), result));
  return result;
}

}  // namespace millrace
