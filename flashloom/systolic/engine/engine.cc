#include "flashloom/systolic/engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <queue>
#include <string>
#include <string_view>

#include "flashloom/core/error.h"
#include "flashloom/systolic/engine/address_check.h"
#include "flashloom/systolic/engine/dma_controller.h"
#include "flashloom/systolic/engine/matrix_controller.h"
#include "flashloom/systolic/engine/semaphores.h"

namespace flashloom::systolic {
namespace {

// A semaphore written, a transfer ended: at the end of a cycle.
struct Release {
  int64_t cycle;
  int instruction;
  bool writes;
  int64_t semaphore;
  int64_t value;
  bool ends_transfer;
  bool is_load;

  bool operator>(const Release& other) const {
    return std::pair(cycle, instruction) > std::pair(other.cycle, other.instruction);
  }
};

class Engine {
 public:
  Engine(const MachineConfig& config, std::span<const uint32_t> words, const EngineOptions& options)
      : config_(config), words_(words), options_(options), matrix_(config), dma_(config) {}

  Schedule run() {
    int64_t cycle = 0;
    int64_t counted = 0;
    while (!stopped_) {
      changed_ = false;
      const bool matrix_room = matrix_.has_room();
      const bool load_room = dma_.has_room(false);
      const bool store_room = dma_.has_room(true);
      const IssueState state = step_matrix(cycle);
      step_dma(false, cycle);
      step_dma(true, cycle);
      step_decoder(cycle, matrix_room, load_room, store_room);
      step_releases(cycle);
      int64_t next = cycle + 1;
      if (!changed_ && !stopped_) {
        next = next_change(cycle);
        if (next < 0) {
          deadlock(cycle);
        }
      }
      schedule_.issue_cycles[static_cast<size_t>(state)] += next - cycle;
      if (transfers_under_way_ > 0 || !releases_.empty()) {
        count_dma(cycle, next);
      }
      cycle = next;
      if (cycle > options_.cycle_limit) {
        throw InvalidArgument("systolic", "program",
                              fmt::format("its end before cycle {}", options_.cycle_limit),
                              "still running");
      }
      if (options_.progress != nullptr && cycle - counted > kProgressCycles) {
        counted = cycle;
        (*options_.progress)(static_cast<int64_t>(at_));
      }
    }
    schedule_.cycles = cycle;
    schedule_.matrix_active = matrix_.active_cycles();
    step_releases(std::numeric_limits<int64_t>::max());  // a stop that waits for nobody
    check_semaphores(cycle);
    return std::move(schedule_);
  }

 private:
  static constexpr int64_t kProgressCycles = 1 << 16;

  IssueState step_matrix(int64_t cycle) {
    const MatrixController::Step step = matrix_.step(cycle, semaphores_);
    if (step.state == IssueState::issued) {
      const Instruction& instruction = step.issued.instruction;
      check_addresses(config_, options_.memory_bytes, instruction, step.issued.index, cycle);
      schedule_.issues.push_back(step.at);
      schedule_.events.push_back({ValueEvent::Kind::matrix, step.issued.index});
      if (instruction[Field::release] != 0) {
        const int64_t at =
            step.at.start() + plan_timing(instruction.matrix_function()).release.at(config_.shape);
        releases_.push({.cycle = at,
                        .instruction = step.issued.index,
                        .writes = true,
                        .semaphore = instruction[Field::semaphore],
                        .value = instruction[Field::release_value]});
      }
      changed_ = true;
    }
    return step.state;
  }

  void step_dma(bool is_store, int64_t cycle) {
    if (const DmaController::Entry* head = dma_.head(is_store)) {
      const Instruction& instruction = head->instruction;
      const Semaphore& semaphore = semaphores_[static_cast<size_t>(instruction[Field::semaphore])];
      if (instruction[Field::acquire] == 0 ||
          semaphore.available(instruction[Field::acquire_value])) {
        check_addresses(config_, options_.memory_bytes, instruction, head->index, cycle);
      }
    }
    const DmaTransfer* transfer =
        dma_.start(is_store, cycle, semaphores_, schedule_, options_.keep_requests);
    if (transfer == nullptr) {
      return;
    }
    const Instruction& instruction = dma_.started().instruction;
    if (is_store) {
      schedule_.events.push_back({ValueEvent::Kind::store, transfer->instruction});
    }
    releases_.push({.cycle = transfer->finished,
                    .instruction = transfer->instruction,
                    .writes = instruction[Field::release] != 0,
                    .semaphore = instruction[Field::semaphore],
                    .value = instruction[Field::release_value],
                    .ends_transfer = true,
                    .is_load = !is_store});
    ++transfers_under_way_;
    changed_ = true;
  }

  // One word a cycle; the last word of an instruction waits for room in its queue.
  void step_decoder(int64_t cycle, bool matrix_room, bool load_room, bool store_room) {
    if (at_ == words_.size()) {
      return;
    }
    if (!pending_) {
      pending_ = decode_at(cycle);
      taken_ = 0;
    }
    const int words = kInstructionWords[static_cast<size_t>(pending_->kind)];
    if (taken_ + 1 == words) {
      if (pending_->kind == Kind::fence) {
        if (((*pending_)[Field::fence_matrix] != 0 && !matrix_.idle(cycle)) ||
            ((*pending_)[Field::fence_dma] != 0 && !dma_.idle())) {
          return;
        }
        stopped_ = (*pending_)[Field::stop] != 0;
      } else if (pending_->kind == Kind::matrix) {
        if (!matrix_room) {
          return;
        }
        matrix_.push(*pending_, index_);
      } else {
        if (pending_->is_store() ? !store_room : !load_room) {
          return;
        }
        dma_.push(*pending_, index_);
      }
      schedule_.program.push_back(*pending_);
      pending_.reset();
      ++index_;
    }
    ++taken_;
    ++at_;
    changed_ = true;
  }

  Instruction decode_at(int64_t cycle) const {
    try {
      return decode(words_.subspan(at_));
    } catch (const InvalidArgument& error) {
      throw InvalidArgument("systolic",
                            fmt::format("instruction {} (word {}) in cycle {}", index_, at_, cycle),
                            "a legal instruction", error.what());
    }
  }

  void step_releases(int64_t cycle) {
    while (!releases_.empty() && releases_.top().cycle <= cycle) {
      const Release release = releases_.top();
      releases_.pop();
      if (release.writes) {
        Semaphore& semaphore = semaphores_[static_cast<size_t>(release.semaphore)];
        semaphore.value = release.value;
        semaphore.busy = false;
      }
      if (release.ends_transfer) {
        dma_.finish();
        --transfers_under_way_;
        if (release.is_load) {
          schedule_.events.push_back({ValueEvent::Kind::load, release.instruction});
        }
      }
      changed_ = true;
    }
  }

  int64_t next_change(int64_t cycle) const {
    int64_t next = matrix_.next_change(cycle);
    if (!releases_.empty() && (next < 0 || releases_.top().cycle < next)) {
      next = releases_.top().cycle;
    }
    return next;
  }

  // A transfer is under way from its start on; several overlap.
  void count_dma(int64_t cycle, int64_t next) {
    if (transfers_under_way_ > 0) {
      schedule_.dma_active += next - cycle;
    }
  }

  std::string describe_semaphore(int64_t number) const {
    const Semaphore& semaphore = semaphores_[static_cast<size_t>(number)];
    if (semaphore.busy) {
      return fmt::format("semaphore {}, taken by instruction {} ({}) in cycle {} and not released",
                         number, semaphore.holder,
                         mnemonic(schedule_.program[static_cast<size_t>(semaphore.holder)]),
                         semaphore.since);
    }
    return fmt::format("semaphore {}, which holds {}", number, semaphore.value);
  }

  std::string describe_wait(std::string_view engine, const Instruction& instruction,
                            int index) const {
    std::string text =
        fmt::format("{}: instruction {} ({}) waits", engine, index, mnemonic(instruction));
    const auto add = [&](Field acquire, Field semaphore, Field value) {
      if (instruction[acquire] != 0 &&
          !semaphores_[static_cast<size_t>(instruction[semaphore])].available(instruction[value])) {
        text += fmt::format(" for {} of {}", instruction[value],
                            describe_semaphore(instruction[semaphore]));
      }
    };
    add(Field::acquire, Field::semaphore, Field::acquire_value);
    add(Field::second_acquire, Field::second_semaphore, Field::second_acquire_value);
    return text;
  }

  [[noreturn]] void deadlock(int64_t cycle) const {
    std::string text;
    const auto add = [&](const std::string& line) { text += (text.empty() ? "" : "; ") + line; };
    if (const MatrixController::Entry* head = matrix_.head()) {
      add(describe_wait("matrix", head->instruction, head->index));
    }
    for (const bool is_store : {false, true}) {
      if (const DmaController::Entry* head = dma_.head(is_store)) {
        add(describe_wait(is_store ? "store" : "load", head->instruction, head->index));
      }
    }
    if (at_ == words_.size()) {
      if (text.empty()) {
        throw InvalidArgument("systolic", fmt::format("program's end in cycle {}", cycle),
                              "a fence with stop=1 as the last instruction", "none");
      }
    } else if (pending_) {
      add(fmt::format("decoder: instruction {} ({}) waits for {}", index_, mnemonic(*pending_),
                      pending_->kind == Kind::fence ? "the engines to be idle" : "its queue"));
    }
    throw InvalidArgument("systolic", fmt::format("program in cycle {}", cycle),
                          "an instruction that can go on", fmt::format("a deadlock: {}", text));
  }

  void check_semaphores(int64_t cycle) const {
    for (int i = 0; i < kSemaphoreCount; ++i) {
      const Semaphore& semaphore = semaphores_[static_cast<size_t>(i)];
      if (semaphore.busy) {
        throw InvalidArgument("systolic", fmt::format("program's end in cycle {}", cycle),
                              "every semaphore released", describe_semaphore(i));
      }
    }
  }

  MachineConfig config_;
  std::span<const uint32_t> words_;
  EngineOptions options_;
  MatrixController matrix_;
  DmaController dma_;
  Semaphores semaphores_ = {};
  std::priority_queue<Release, std::vector<Release>, std::greater<>> releases_;
  Schedule schedule_;
  size_t at_ = 0;  // next word
  int index_ = 0;  // instruction being decoded
  int taken_ = 0;  // words of it
  std::optional<Instruction> pending_;
  int transfers_under_way_ = 0;
  bool stopped_ = false;
  bool changed_ = false;
};

}  // namespace

std::string_view issue_state_name(IssueState state) {
  constexpr std::string_view kNames[] = {"issued",         "array",        "drain",
                                         "no_instruction", "waits_query",  "waits_key",
                                         "waits_value",    "waits_output", "waits_other"};
  static_assert(std::size(kNames) == kIssueStateCount);
  return kNames[static_cast<size_t>(state)];
}

Schedule run_engine(const MachineConfig& config, std::span<const uint32_t> words,
                    const EngineOptions& options) {
  check_machine(config);
  return Engine(config, words, options).run();
}

}  // namespace flashloom::systolic
