// What several ranks that train together do beside the steps: agree, and follow rank 0, which alone
// touches the output directory.
#include <array>
#include <optional>

#include "flashloom/train/checkpoint.h"
#include "flashloom/train/evaluation.h"
#include "flashloom/train/fine_tune.h"
#include "flashloom/train/parallel/state_exchange.h"

namespace flashloom {

std::optional<StepShape> FineTune::agree_with_ranks(std::optional<StepShape> recorded,
                                                    int64_t& budget) {
  Communicator& ranks = *options_.ranks;
  budget = least_of_ranks(ranks, budget);
  options_.process_bytes = -least_of_ranks(ranks, -options_.process_bytes);
  std::array<int64_t, 3> found = {recorded.has_value() ? 1 : 0,
                                  recorded.value_or(StepShape()).bin_capacity,
                                  recorded.value_or(StepShape()).bins_per_step};
  ranks.broadcast(TensorView(found.data(), {3}), 0);
  if (found[0] == 0) {
    return std::nullopt;
  }
  return StepShape{.bin_capacity = found[1], .bins_per_step = found[2]};
}

std::function<void(std::span<double>)> FineTune::sum_ranks() {
  if (!parallel_) {
    return {};
  }
  return [this](std::span<double> values) { parallel_->sum(values); };
}

std::optional<TrainingState> FineTune::read_state(const FineTuneObserver& observer) {
  if (!parallel_) {
    return CheckpointFolders(options_.output).read_newest(state_tensors(), observer.damaged);
  }
  StateExchange exchange(parallel_->communicator());
  std::optional<TrainingState> state;
  if (writes()) {
    state = CheckpointFolders(options_.output)
                .read_newest(state_tensors(), observer.damaged, &exchange);
    exchange.end();
  } else if (exchange.receive_all(state_tensors())) {
    state.emplace();
  }
  if (state) {
    // The results of evaluations are rank 0's business.
    std::array<int64_t, 4> numbers = {state->step, state->data.epoch, state->data.bin,
                                      state->tokens};
    parallel_->communicator().broadcast(TensorView(numbers.data(), {4}), 0);
    state->step = numbers[0];
    state->data = {.epoch = numbers[1], .bin = numbers[2]};
    state->tokens = numbers[3];
  }
  return state;
}

bool FineTune::stop_asked(const FineTuneObserver& observer) {
  const bool here = observer.stop && observer.stop();
  return parallel_ ? parallel_->any(here) : here;
}

// run() without its files: the same exchanges in the same order.
void FineTune::follow(FineTuneResult& result, const FineTuneObserver& observer) {
  TrainingState& state = result.state;
  StateExchange exchange(parallel_->communicator());
  const auto evaluate = [&] {
    result.after =
        evaluate_documents(*model_, *held_out_, model_->options().max_tokens, place(), sum_ranks());
  };
  const auto due = [&](int64_t every) { return every > 0 && state.step % every == 0; };
  if (held_out_ != nullptr && state.step == 0) {
    evaluate();
  }
  while (state.step < steps_ && !result.stopped) {
    state.tokens += step(state.step, nullptr).tokens;
    ++state.step;
    const bool last = state.step == steps_;
    result.stopped = stop_asked(observer) && !last;
    if (held_out_ != nullptr && (last || due(options_.eval_steps))) {
      evaluate();
    }
    if (!last && (result.stopped || due(options_.save_steps))) {
      exchange.send_all(state_tensors());
    }
  }
  if (!result.stopped) {
    exchange.send_all(state_tensors());
  }
}

}  // namespace flashloom
