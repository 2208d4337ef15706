#include "flashloom/train/report/run_outcome.h"

#include <algorithm>
#include <numeric>

namespace flashloom {
namespace {

// A whole number deep in a JSON object; absent if it is not there, or is something else.
std::optional<int64_t> number_at(const Json& json, const char* group, const char* name) {
  const Json* object = json.find(group);
  const Json* found = object == nullptr ? nullptr : object->find(name);
  if (found == nullptr || !found->is_integer()) {
    return std::nullopt;
  }
  return found->integer();
}

double mean(const float* begin, const float* end) {
  return std::accumulate(begin, end, 0.0) / static_cast<double>(std::max<int64_t>(1, end - begin));
}

// The mean of a rate over time: of its values weighed by the steps' seconds.
std::optional<double> mean_rate(const MetricCurve* rate, const MetricCurve& seconds, double total) {
  if (rate == nullptr || rate->values.size() != seconds.values.size()) {
    return std::nullopt;
  }
  return std::inner_product(rate->values.begin(), rate->values.end(), seconds.values.begin(), 0.0) /
         total;
}

}  // namespace

RunOutcome outcome_of(const RunFolder& run) {
  RunOutcome outcome = {.planned_bytes = number_at(run.facts, "memory", "planned_bytes"),
                        .peak_bytes = number_at(run.facts, "memory", "peak_bytes"),
                        .findings = static_cast<int64_t>(run.guards.size())};
  for (const MetricCurve& curve : run.curves) {
    outcome.steps = std::max<int64_t>(outcome.steps, curve.steps.back());
  }
  if (const MetricCurve* loss = run.curve("loss")) {
    const auto& values = loss->values;
    outcome.first_loss = values.front();
    const size_t last = std::max<size_t>(1, values.size() / 10);
    outcome.loss = mean(values.data() + values.size() - last, values.data() + values.size());
  }
  if (const MetricCurve* held_out = run.curve("eval_loss")) {
    if (held_out->steps.front() == 0) {
      outcome.eval_loss_before = held_out->values.front();
    }
    if (held_out->steps.back() > 0) {
      outcome.eval_loss_after = held_out->values.back();
    }
    const auto best = std::min_element(held_out->values.begin(), held_out->values.end());
    outcome.eval_loss_best = *best;
    outcome.best_step = held_out->steps[static_cast<size_t>(best - held_out->values.begin())];
  }
  const MetricCurve* seconds = run.curve("seconds");
  const MetricCurve* rate = run.curve("all_tokens_per_second");
  if (seconds != nullptr) {
    const double total = std::accumulate(seconds->values.begin(), seconds->values.end(), 0.0);
    outcome.seconds = total;
    outcome.tokens_per_second = mean_rate(rate, *seconds, total);
    outcome.loss_tokens_per_second =
        mean_rate(run.curve("loss_tokens_per_second"), *seconds, total);
    outcome.mfu = mean_rate(run.curve("mfu"), *seconds, total);
    if (outcome.tokens_per_second) {
      outcome.tokens = *outcome.tokens_per_second * total;
    }
  }
  if (const MetricCurve* packing = run.curve("packing")) {
    outcome.packing = mean(packing->values.data(), packing->values.data() + packing->values.size());
  }
  if (const MetricCurve* held = run.curve("memory_bytes")) {
    const auto most =
        static_cast<int64_t>(*std::max_element(held->values.begin(), held->values.end()));
    // facts.json knows of evaluations too, but a killed process did not write its peak there.
    outcome.peak_bytes = std::max(outcome.peak_bytes.value_or(0), most);
  }
  if (outcome.peak_bytes == 0) {
    outcome.peak_bytes.reset();
  }
  return outcome;
}

Json to_json(const RunOutcome& outcome) {
  Json json = {{"steps", outcome.steps}, {"findings", outcome.findings}};
  const auto add = [&](const char* name, const auto& value) {
    if (value) {
      json[name] = *value;
    }
  };
  add("first_loss", outcome.first_loss);
  add("loss", outcome.loss);
  add("eval_loss_before", outcome.eval_loss_before);
  add("eval_loss_after", outcome.eval_loss_after);
  add("eval_loss_best", outcome.eval_loss_best);
  if (outcome.eval_loss_best) {
    json["best_step"] = outcome.best_step;
  }
  add("seconds", outcome.seconds);
  add("tokens", outcome.tokens);
  add("tokens_per_second", outcome.tokens_per_second);
  add("loss_tokens_per_second", outcome.loss_tokens_per_second);
  add("mfu", outcome.mfu);
  add("packing", outcome.packing);
  add("planned_bytes", outcome.planned_bytes);
  add("peak_bytes", outcome.peak_bytes);
  return json;
}

}  // namespace flashloom
