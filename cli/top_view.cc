#include "cli/top_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>
#include <utility>

#include "cli/text_row.h"

namespace millrace::cli {

namespace {

using nlohmann::json;

constexpr int kLeast = 40;         // columns
constexpr int kMost = 400;         // columns
constexpr double kGridMost = 256;  // stages, and lanes, that are drawn
constexpr double kRaisedLoad = 1.25;
constexpr double kHighLoad = 1.5;

// A value of the answer, or nothing.
class Field {
 public:
  explicit Field(const json* value) : value_(value) {}

  Field operator[](const char* name) const {
    if (value_ == nullptr || !value_->is_object()) return Field(nullptr);
    const auto it = value_->find(name);
    return Field(it == value_->end() ? nullptr : &*it);
  }
  std::vector<Field> items() const {
    std::vector<Field> out;
    if (value_ == nullptr || !value_->is_array()) return out;
    for (const json& item : *value_) out.emplace_back(&item);
    return out;
  }
  // Numbers alone, unknown ones as 0.
  std::vector<double> numbers() const {
    std::vector<double> out;
    for (const Field& item : items()) out.push_back(item.number().value_or(0));
    return out;
  }
  std::optional<double> number() const {
    if (value_ == nullptr || !value_->is_number()) return std::nullopt;
    return value_->get<double>();
  }
  double or_zero() const { return number().value_or(0); }
  std::string text() const {
    return value_ != nullptr && value_->is_string()
               ? printable(value_->get_ref<const std::string&>())
               : std::string();
  }
  bool flag() const { return value_ != nullptr && value_->is_boolean() && value_->get<bool>(); }
  // Members that are numbers above 0: (name, number).
  std::vector<std::pair<std::string, double>> positive() const {
    std::vector<std::pair<std::string, double>> out;
    if (value_ == nullptr || !value_->is_object()) return out;
    for (const auto& [name, member] : value_->items()) {
      if (const double n = Field(&member).or_zero(); n > 0) out.emplace_back(printable(name), n);
    }
    return out;
  }

 private:
  const json* value_;
};

// 1234567.8 as 1,234,568.
std::string count(std::optional<double> n) {
  if (!n) return "-";
  std::string digits = fmt::format("{:.0f}", std::clamp(*n, 0.0, 1e15));
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<std::size_t>(at), 1, ',');
  }
  return digits;
}

std::string rate(std::optional<double> n) {
  return n && *n > 0 && *n < 99.95 ? fmt::format("{:.1f}", *n) : count(n);
}

std::string percent(std::optional<double> ratio) {
  return ratio ? fmt::format("{:.0f}%", std::clamp(*ratio, 0.0, 10.0) * 100) : "-";
}

std::string milliseconds(std::optional<double> ms) {
  if (!ms) return "-";
  if (*ms < 99.95) return fmt::format("{:.1f} ms", *ms);
  if (*ms < 1000) return fmt::format("{:.0f} ms", *ms);
  return fmt::format("{:.{}f} s", std::min(*ms, 1e12) / 1000, *ms < 10'000 ? 2 : 1);
}

std::string duration(double seconds) {
  seconds = std::clamp(seconds, 0.0, 1e12);
  if (seconds < 10) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<std::int64_t>(seconds);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min", whole / 60);
  if (whole < 48 * 3600) return fmt::format("{} h {} min", whole / 3600, whole / 60 % 60);
  return fmt::format("{} days", whole / 86'400);
}

double share(Field part, Field whole) {
  return whole.or_zero() > 0 ? part.or_zero() / whole.or_zero() : 0;
}

Ink level(double ratio) {
  return ratio >= 0.9 ? Ink::kBad : ratio >= 0.7 ? Ink::kRaised : Ink::kPlain;
}

Ink load_ink(double ratio) {
  return ratio >= kHighLoad ? Ink::kBad : ratio >= kRaisedLoad ? Ink::kRaised : Ink::kPlain;
}

class Painter {
 public:
  Painter(const TopStyle& style, std::vector<std::string>& lines)
      : width_(std::clamp(style.width, kLeast, kMost)), style_(style), lines_(lines) {}

  TextRow row() const { return {width_, style_.color}; }
  void add(const TextRow& row) { lines_.push_back(row.text()); }
  int width() const { return width_; }
  bool unicode() const { return style_.unicode; }

 private:
  int width_;
  TopStyle style_;
  std::vector<std::string>& lines_;
};

void paint_title(Painter& p, Field service, const std::string& url, const std::string& notice) {
  TextRow row = p.row();
  row.put("millrace", Ink::kStrong);
  const std::string model = service["model"].text();
  if (!model.empty()) {
    row.to(0).put(model, Ink::kStrong);
    row.to(0).put(service["version"].text(), Ink::kQuiet);
    row.put(fmt::format(", up {}", duration(service["uptime_s"].or_zero())), Ink::kQuiet);
    if (service["ready"].flag()) {
      row.put("  Ready", Ink::kGood);
    } else if (service["draining"].flag()) {
      row.put("  Draining", Ink::kRaised);
    } else {
      row.put(fmt::format("  Not ready: {}", service["reason"].text()), Ink::kBad);
    }
  }
  const std::string where = printable(url);
  const int start = p.width() - static_cast<int>(where.size());
  if (start > row.column()) row.to(start).put(where, Ink::kQuiet);
  p.add(row);
  row = p.row();
  row.put(printable(notice), Ink::kBad);
  p.add(row);
}

void paint_rates(Painter& p, Field status) {
  const Field rates = status["rates"];
  const Field errors = status["errors"];
  TextRow row = p.row();
  row.put("Out ").put(rate(rates["generated_tokens_per_s"].number()), Ink::kStrong);
  row.put(" tokens/s   In ").put(rate(rates["prompt_tokens_per_s"].number()), Ink::kStrong);
  row.put(" tokens/s   ").put(rate(rates["finished_per_s"].number()), Ink::kStrong);
  row.put(" answers/s   ");
  const double failed = errors["failed"].or_zero();
  const double rejected = errors["rejected"].or_zero();
  row.put(fmt::format("{} failed, {} refused", count(failed), count(rejected)),
          failed > 0     ? Ink::kBad
          : rejected > 0 ? Ink::kRaised
                         : Ink::kPlain);
  row.put(fmt::format(" in {}", duration(errors["window_s"].or_zero())), Ink::kQuiet);
  p.add(row);

  std::vector<double> history = status["history"]["generated_tokens_per_s"].numbers();
  const std::size_t room = static_cast<std::size_t>(p.width()) - 30;
  if (history.size() > room)
    history.erase(history.begin(), history.end() - static_cast<long>(room));
  const double peak = history.empty() ? 0 : std::ranges::max(history);
  row = p.row();
  row.put(bars(history, peak, p.unicode()));
  row.to(0).put(fmt::format("tokens/s, at most {}", rate(peak)), Ink::kQuiet);
  p.add(row);
}

void paint_limits(Painter& p, Field status) {
  const Field queue = status["queue"];
  const Field load = status["load"];
  double slots = 0;
  for (const Field& cell : status["cells"].items()) {
    if (cell["state"].text() != "gone") slots += cell["max_sequences"].or_zero();
  }
  TextRow row = p.row();
  row.put("Running ").put(count(load["running"].number()), Ink::kStrong);
  row.put(fmt::format(" of {}", count(slots))).to(24);
  const double kv = share(load["kv_tokens_used"], load["kv_tokens"]);
  row.put(fmt::format("KV    {} {:>4}", meter(kv, 10, p.unicode()), percent(kv)), level(kv));
  row.to(49).put(fmt::format("{} of {} tokens", count(load["kv_tokens_used"].number()),
                             count(load["kv_tokens"].number())),
                 Ink::kQuiet);
  p.add(row);

  row = p.row();
  row.put("Waiting ")
      .put(count(queue["waiting"].or_zero() + load["waiting_in_cells"].or_zero()), Ink::kStrong);
  const double full = std::max(share(queue["waiting"], queue["waiting_limit"]),
                               share(queue["prompt_tokens"], queue["prompt_tokens_limit"]));
  row.to(24).put(fmt::format("Queue {} {:>4}", meter(full, 10, p.unicode()), percent(full)),
                 level(full));
  row.to(49).put(
      fmt::format("{} of {} here, {} in cells", count(queue["waiting"].number()),
                  count(queue["waiting_limit"].number()), count(load["waiting_in_cells"].number())),
      Ink::kQuiet);
  p.add(row);
}

void paint_latency(Painter& p, Field latency) {
  static constexpr std::pair<const char*, const char*> kParts[] = {{"ttft", "First token"},
                                                                   {"itl", "Between tokens"},
                                                                   {"e2e", "Whole answer"},
                                                                   {"queue", "In the queue"}};
  TextRow row = p.row();
  row.put(fmt::format("Last {:<11}{:>10}{:>10}{:>10}{:>10}",
                      duration(latency["window_s"].or_zero()), "p50", "p90", "p99", "count"),
          Ink::kQuiet);
  p.add(row);
  for (const auto& [name, label] : kParts) {
    const Field part = latency[name];
    row = p.row();
    row.put(fmt::format("{:<16}{:>10}{:>10}{:>10}", label, milliseconds(part["p50_ms"].number()),
                        milliseconds(part["p90_ms"].number()),
                        milliseconds(part["p99_ms"].number())));
    row.put(fmt::format("{:>10}", count(part["count"].number())), Ink::kQuiet);
    p.add(row);
  }
}

void paint_causes(Painter& p, Field errors) {
  auto causes = errors["failed_total"].positive();
  std::ranges::move(errors["rejected_total"].positive(), std::back_inserter(causes));
  if (causes.empty()) return;
  TextRow row = p.row();
  row.put("Errors since the start:", Ink::kQuiet);
  for (const auto& [name, n] : causes) row.put(fmt::format(" {} {}", name, count(n)), Ink::kQuiet);
  p.add(row);
}

// At most `room` values: the highest of each run of neighbours.
std::vector<double> thinned(const std::vector<double>& values, int room) {
  if (room <= 0) return {};
  const std::size_t most = static_cast<std::size_t>(room);
  if (values.size() <= most) return values;
  std::vector<double> out(most, 0.0);
  for (std::size_t i = 0; i < values.size(); ++i) {
    double& to = out[i * most / values.size()];
    to = std::max(to, values[i]);
  }
  return out;
}

// What one worker does, in `columns`: busy, load, then as there is room exchange and wait, layers.
void paint_worker(TextRow& row, Field worker, int columns, bool unicode) {
  const int end = row.column() + columns;
  row.put(fmt::format("{:>4}", percent(worker["busy_ratio"].number())));
  const std::optional<double> load = worker["expert_load_ratio"].number();
  row.put(load ? fmt::format(" {:>4.2f}", std::min(*load, 99.0)) : "    -",
          load_ink(load.value_or(0)));
  if (columns >= 20) {
    row.put(fmt::format(" x{:<4}w{:<4}", percent(worker["exchange_ratio"].number()),
                        percent(worker["pipeline_wait_ratio"].number())),
            Ink::kQuiet);
  }
  for (const double layer : thinned(worker["layer_load_ratio"].numbers(), end - row.column() - 2)) {
    row.put(bars(std::span(&layer, 1), 2.0, unicode), load_ink(layer));
  }
}

void paint_grid(Painter& p, Field cell) {
  constexpr int kName = 9;  // "stage 12 "
  constexpr int kNarrow = 11, kWide = 44;
  const auto extent = [&](const char* name) {
    return static_cast<int>(std::clamp(cell[name].or_zero(), 0.0, kGridMost));
  };
  const int stages = extent("stages"), lanes = extent("lanes");
  if (stages == 0 || lanes == 0) return;
  const int per_row = std::clamp((p.width() - kName) / kNarrow, 1, lanes);
  const int columns = std::min((p.width() - kName) / per_row, kWide);
  const std::vector<Field> workers = cell["workers"].items();
  for (int first = 0; first < lanes; first += per_row) {
    const int last = std::min(first + per_row, lanes);
    TextRow row = p.row();
    for (int lane = first; lane < last; ++lane) {
      row.to(kName + (lane - first) * columns).put(fmt::format(" lane {}", lane), Ink::kQuiet);
    }
    p.add(row);
    for (int stage = 0; stage < stages; ++stage) {
      row = p.row();
      row.put(fmt::format("stage {}", stage), Ink::kQuiet);
      for (int lane = first; lane < last; ++lane) {
        row.to(kName + (lane - first) * columns);
        const auto it = std::ranges::find_if(workers, [&](const Field& w) {
          return w["stage"].number() == stage && w["lane"].number() == lane;
        });
        if (it == workers.end()) {
          row.put("   no report", Ink::kQuiet);
        } else {
          paint_worker(row, *it, columns, p.unicode());
        }
      }
      p.add(row);
    }
  }
}

// The layer whose busiest lane is furthest above the average one.
void paint_imbalance(Painter& p, Field cell) {
  double highest = 0;
  Field worst(nullptr);
  for (const Field& layer : cell["imbalance"].items()) {
    if (layer["lanes"].or_zero() <= highest) continue;
    highest = layer["lanes"].or_zero();
    worst = layer;
  }
  if (highest <= 0) return;
  TextRow row = p.row();
  row.put(fmt::format("layer {} is the least even: busiest lane {:.2f}, busiest expert {:.2f} of "
                      "the average",
                      count(worst["layer"].number()), std::min(highest, 9999.0),
                      std::min(worst["experts"].or_zero(), 9999.0)),
          load_ink(highest));
  p.add(row);
}

void paint_cell(Painter& p, Field cell) {
  const std::string state = cell["state"].text();
  const bool gone = state == "gone";
  TextRow row = p.row();
  p.add(row);
  row.put(cell["id"].text(), Ink::kStrong).to(0);
  row.put(state, state == "healthy"                          ? Ink::kGood
                 : state == "joining" || state == "draining" ? Ink::kRaised
                                                             : Ink::kBad);
  row.put(fmt::format("  epoch {:.0f}, {} {} ago", cell["epoch"].or_zero(), gone ? "left" : "heard",
                      duration(cell["heartbeat_age_s"].or_zero())));
  if (const double n = cell["restarts"].or_zero(); n > 0) {
    row.put(fmt::format(", {} {}", count(n), n == 1 ? "restart" : "restarts"), Ink::kRaised);
  }
  if (const double n = cell["preemptions"].or_zero(); n > 0) {
    row.put(fmt::format(", {} preempted", count(n)), Ink::kRaised);
  }
  p.add(row);
  if (const std::string reason = cell["reason"].text(); !reason.empty()) {
    row = p.row();
    row.put(reason, Ink::kBad);
    p.add(row);
  }
  if (gone) return;
  row = p.row();
  const double kv = share(cell["kv_tokens_used"], cell["kv_tokens"]);
  row.put(fmt::format("out {}/s  in {}/s  {} steps/s  {} of {} running  {} waiting  ",
                      rate(cell["generated_tokens_per_s"].number()),
                      rate(cell["prompt_tokens_per_s"].number()),
                      rate(cell["steps_per_s"].number()), count(cell["running"].number()),
                      count(cell["max_sequences"].number()), count(cell["waiting"].number())));
  row.put(fmt::format("KV {}", percent(kv)), level(kv));
  row.put(fmt::format("  busy {}  bubble {}", percent(cell["busy_ratio"].number()),
                      percent(cell["pipeline_bubble_ratio"].number())));
  p.add(row);
  paint_grid(p, cell);
  paint_imbalance(p, cell);
}

}  // namespace

TopFrame draw_status(const json& status, const std::string& url, const std::string& notice,
                     const TopStyle& style) {
  TopFrame frame;
  const Field root(&status);
  Painter head(style, frame.head);
  paint_title(head, root["service"], url, notice);
  paint_rates(head, root);
  paint_limits(head, root);
  paint_latency(head, root["latency"]);
  paint_causes(head, root["errors"]);

  std::vector<Field> cells = root["cells"].items();
  std::ranges::stable_partition(cells,
                                [](const Field& c) { return c["state"].text() != "healthy"; });
  Painter body(style, frame.body);
  TextRow legend = body.row();
  legend.put("Workers: busy, load (1 is even), x exchange, w pipeline wait, load by layer",
             Ink::kQuiet);
  if (!cells.empty()) body.add(legend);
  for (const Field& cell : cells) paint_cell(body, cell);
  return frame;
}

TopFrame draw_waiting(const std::string& url, const std::string& notice, const TopStyle& style) {
  TopFrame frame;
  Painter head(style, frame.head);
  paint_title(head, Field(nullptr), url, notice);
  return frame;
}

}  // namespace millrace::cli
