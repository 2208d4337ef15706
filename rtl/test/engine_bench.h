#pragma once

// Runs a program on a verilated fsa_engine and keeps all that a comparison needs.

#include <bit>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "flashloom/systolic/array/register_array.h"
#include "flashloom/systolic/machine/machine_config.h"
#include "flashloom/systolic/memory/main_memory.h"
#include "rtl/test/axi_memory.h"
#include "rtl/test/verilated_bits.h"

namespace flashloom::rtl {

/// A run, cycle by cycle. Cycle 0 is the first after the reset.
struct EngineTrace {
  std::vector<std::vector<uint32_t>> registers;  // in the simulator's order, at the cycle's start
  std::vector<systolic::AccumulatorWrite> writes;
  std::vector<int64_t> accepted;  // cycle of each instruction word
  std::vector<int64_t> issues;    // of each matrix instruction
  std::vector<int64_t> load_starts;
  std::vector<int64_t> load_finishes;
  std::vector<int64_t> store_starts;
  std::vector<int64_t> store_finishes;
  int64_t cycles = 0;
};

struct BenchOptions {
  AxiTiming memory;
  double host_stall_chance = 0;  // of a word to come a cycle later
  int64_t cycle_limit = 1 << 20;
  bool keep_registers = true;
};

template <typename Model>
class EngineBench {
 public:
  explicit EngineBench(const systolic::MachineConfig& config) : config_(config) {}

  EngineTrace run(const std::vector<uint32_t>& words, systolic::MainMemory& memory,
                  const BenchOptions& options) {
    const int ports = config_.port_count();
    const int beat_bytes = config_.beat_bytes();
    std::vector<AxiPort> axi;
    for (int p = 0; p < ports; ++p) {
      AxiTiming timing = options.memory;
      timing.seed = timing.seed * 1000 + static_cast<uint64_t>(p);
      axi.emplace_back(timing, memory.bytes(), beat_bytes, config_.spad_row_bytes() / beat_bytes);
    }
    std::mt19937_64 random(options.memory.seed);
    std::uniform_real_distribution<double> chance(0, 1);
    model_ = std::make_unique<Model>();  // memories start as zeros, as the simulator's do
    reset();
    EngineTrace trace;
    size_t next_word = 0;
    for (int64_t cycle = 0; !model_->stopped; ++cycle) {
      if (cycle > options.cycle_limit || model_->fault) {
        throw std::runtime_error(model_->fault ? "the decoder reports a fault"
                                               : "no end within the cycle limit");
      }
      model_->word_valid = next_word < words.size() && chance(random) >= options.host_stall_chance;
      model_->word = next_word < words.size() ? words[next_word] : 0;
      for (int p = 0; p < ports; ++p) {
        drive(static_cast<size_t>(p), axi[static_cast<size_t>(p)].drive(cycle),
              axi[static_cast<size_t>(p)]);
      }
      model_->clock = 0;
      model_->eval();
      observe(cycle, options, trace);
      if (model_->word_valid && model_->word_ready) {
        trace.accepted.push_back(cycle);
        ++next_word;
      }
      std::vector<AxiPort::Seen> seen;
      for (int p = 0; p < ports; ++p) {
        seen.push_back(see(static_cast<size_t>(p)));
      }
      model_->clock = 1;
      model_->eval();
      for (int p = 0; p < ports; ++p) {
        axi[static_cast<size_t>(p)].clock(cycle, seen[static_cast<size_t>(p)]);
      }
      trace.cycles = cycle + 1;
    }
    return trace;
  }

 private:
  void reset() {
    model_->reset = 1;
    model_->word_valid = 0;
    for (int i = 0; i < 2; ++i) {
      model_->clock = 0;
      model_->eval();
      model_->clock = 1;
      model_->eval();
    }
    model_->reset = 0;
  }

  void drive(size_t port, const AxiPort::Driven& driven, const AxiPort& axi) {
    set_bits(model_->ar_ready, port, 1, driven.ar_ready);
    set_bits(model_->r_valid, port, 1, driven.r_valid);
    set_bits(model_->aw_ready, port, 1, driven.aw_ready);
    set_bits(model_->w_ready, port, 1, driven.w_ready);
    set_bits(model_->b_valid, port, 1, driven.b_valid);
    if (driven.r_valid) {
      const auto beat = axi.beat(driven.r_address);
      const size_t first = port * beat.size() * 8;
      for (size_t i = 0; i < beat.size(); ++i) {
        set_bits(model_->r_data, first + i * 8, 8, static_cast<uint64_t>(beat[i]));
      }
    }
  }

  AxiPort::Seen see(size_t port) const {
    constexpr size_t kAddressBits = 39;
    AxiPort::Seen seen{
        .ar_valid = get_bits(model_->ar_valid, port, 1) != 0,
        .ar_address = get_bits(model_->ar_address, port * kAddressBits, kAddressBits),
        .r_ready = get_bits(model_->r_ready, port, 1) != 0,
        .aw_valid = get_bits(model_->aw_valid, port, 1) != 0,
        .aw_address = get_bits(model_->aw_address, port * kAddressBits, kAddressBits),
        .w_valid = get_bits(model_->w_valid, port, 1) != 0,
        .w_last = get_bits(model_->w_last, port, 1) != 0,
        .b_ready = get_bits(model_->b_ready, port, 1) != 0};
    if (seen.w_valid) {
      const auto bytes = static_cast<size_t>(config_.beat_bytes());
      for (size_t i = 0; i < bytes; ++i) {
        seen.w_data.push_back(
            static_cast<std::byte>(get_bits(model_->w_data, (port * bytes + i) * 8, 8)));
      }
    }
    return seen;
  }

  void observe(int64_t cycle, const BenchOptions& options, EngineTrace& trace) const {
    const auto note = [&](bool happens, std::vector<int64_t>& list) {
      if (happens) {
        list.push_back(cycle);
      }
    };
    note(model_->issues, trace.issues);
    note(model_->load_starts, trace.load_starts);
    note(model_->load_finishes, trace.load_finishes);
    note(model_->store_starts, trace.store_starts);
    note(model_->store_finishes, trace.store_finishes);
    const auto columns = static_cast<size_t>(config_.shape.columns);
    const auto width = static_cast<size_t>(config_.formats.accumulator.width());
    if (model_->writes) {
      systolic::AccumulatorWrite write{.cycle = cycle, .row = model_->write_row};
      for (size_t c = 0; c < columns; ++c) {
        write.data.push_back(static_cast<uint32_t>(get_bits(model_->write_data, c * width, width)));
      }
      trace.writes.push_back(std::move(write));
    }
    if (options.keep_registers) {
      trace.registers.push_back(registers());
    }
  }

  /// The registers in the order of systolic::dump(); fields as fsa_array.sv packs them.
  std::vector<uint32_t> registers() const {
    const auto rows = static_cast<size_t>(config_.shape.rows);
    const auto columns = static_cast<size_t>(config_.shape.columns);
    const auto element = static_cast<size_t>(config_.formats.element.width());
    const auto sum = static_cast<size_t>(config_.formats.accumulator.width());
    std::vector<uint32_t> words;
    size_t at = 0;
    const auto take = [&](const auto& port, size_t count) {
      at += count;
      return static_cast<uint32_t>(get_bits(port, at - count, count));
    };
    for (size_t i = 0; i < rows * columns; ++i) {
      at += systolic::kControlBits;
      const uint32_t right_valid = take(model_->elements, 1);
      const uint32_t right = take(model_->elements, element);
      const uint32_t down_valid = take(model_->elements, 1);
      const uint32_t down = take(model_->elements, sum);
      const uint32_t up_valid = take(model_->elements, 1);
      const uint32_t up = take(model_->elements, sum);
      const uint32_t stationary = take(model_->elements, element);
      const uint32_t exp2_done = take(model_->elements, 1);
      for (const uint32_t word :
           {stationary, exp2_done, right_valid, right, down_valid, down, up_valid, up}) {
        words.push_back(word);
      }
    }
    at = 0;
    const size_t piece_bits =
        static_cast<size_t>(std::bit_width(static_cast<unsigned>(config_.shape.pieces) - 1));
    constexpr size_t kCommandBits = 1 + 3 + 9;
    for (size_t c = 0; c < columns; ++c) {
      at += kCommandBits;
      const uint32_t out_valid = take(model_->comparators, 1);
      const uint32_t out = take(model_->comparators, sum);
      const uint32_t old_max = take(model_->comparators, sum);
      const uint32_t new_max = take(model_->comparators, sum);
      at += piece_bits;
      for (const uint32_t word : {old_max, new_max, out_valid, out}) {
        words.push_back(word);
      }
    }
    at = 0;
    for (size_t c = 0; c < columns; ++c) {
      words.push_back(take(model_->scales, sum));
    }
    return words;
  }

  systolic::MachineConfig config_;
  std::unique_ptr<Model> model_;
};

}  // namespace flashloom::rtl
