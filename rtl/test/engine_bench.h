#pragma once

// Runs programs on a verilated fsa_system through its control port, and keeps all that a
// comparison needs.

#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flashloom/systolic/machine/machine_config.h"
#include "flashloom/systolic/memory/main_memory.h"
#include "rtl/generate/control_registers.h"
#include "rtl/test/axi_memory.h"
#include "rtl/test/control_host.h"
#include "rtl/test/engine_registers.h"
#include "rtl/test/engine_trace.h"
#include "rtl/test/verilated_bits.h"

namespace flashloom::rtl {

template <typename Model>
class EngineBench {
 public:
  explicit EngineBench(const systolic::MachineConfig& config, const ArrayBlocks& blocks = {})
      : config_(config), blocks_(blocks) {}

  /// A new model after its reset, beside `memory`.
  void begin(systolic::MainMemory& memory, const BenchOptions& options) {
    options_ = options;
    model_ = std::make_unique<Model>();  // memories start as zeros, as the simulator's do
    axi_.clear();
    for (int p = 0; p < config_.port_count(); ++p) {
      AxiTiming timing = options.memory;
      timing.seed = timing.seed * 1000 + static_cast<uint64_t>(p);
      axi_.emplace_back(timing,
                        AxiShape{.port = p,
                                 .beat_bytes = config_.beat_bytes(),
                                 .read_bytes = config_.spad_row_bytes(),
                                 .write_bytes = config_.accumulator_row_bytes()},
                        memory.bytes());
    }
    host_ = std::make_unique<ControlHost>(options.host_stall_chance, options.memory.seed);
    room_ = kWordQueue;
    refused_pushes_ = 0;
    now_ = 0;
    trace_ = {};
    model_->reset = 1;
    for (int i = 0; i < 2; ++i) {
      model_->clock = 0;
      model_->eval();
      model_->clock = 1;
      model_->eval();
    }
    model_->reset = 0;
    set_program({});
  }

  /// A program begins here: later cycles and events are its own.
  void clear_trace() { trace_ = {}; }

  const EngineTrace& trace() const { return trace_; }

  bool interrupt() const { return interrupt_; }

  /// Whether the register took it.
  bool write(std::string_view name, uint32_t data) {
    return write_at(control_register(name), data, ControlHost::kWholeWord);
  }

  bool write_at(uint32_t offset, uint32_t data, uint32_t strobe) {
    finish_pushes();
    host_->offer_write(offset, data, strobe);
    ++writes_open_;
    for (;;) {
      tick();
      if (const auto answer = host_->take_write_answer()) {
        --writes_open_;
        return !answer->refused;
      }
    }
  }

  ControlHost::Answer read_at(uint32_t offset) {
    host_->offer_read(offset);
    for (;;) {
      tick();
      if (const auto answer = host_->take_read_answer()) {
        return *answer;
      }
    }
  }

  uint32_t read(std::string_view name) {
    const ControlHost::Answer answer = read_at(control_register(name));
    if (answer.refused) {
      throw std::runtime_error("the read of a register was refused: " + std::string(name));
    }
    return answer.data;
  }

  /// A word a cycle, as long as the queue is known to have room.
  void push(uint32_t word) {
    while (room_ == 0 && !interrupt_) {
      finish_pushes();
      room_ = read("room");
    }
    --room_;
    while (host_->offers_write()) {
      tick();
      take_push_answers();
    }
    host_->offer_write(control_register("push"), word);
    ++writes_open_;
    tick();
    take_push_answers();
  }

  void finish_pushes() {
    while (writes_open_ > 0) {
      tick();
      take_push_answers();
    }
  }

  int refused_pushes() const { return refused_pushes_; }

  /// Words that the fetching port finds, from an address that no burst's border falls on.
  uint32_t set_program(std::span<const uint32_t> words) {
    constexpr uint32_t kAddress = 0x1F4;
    program_.assign(kAddress + 4 * words.size() + 64, std::byte{0});
    for (size_t i = 0; i < words.size() * 4; ++i) {
      program_[kAddress + i] = static_cast<std::byte>(words[i / 4] >> (8 * (i % 4)));
    }
    AxiTiming timing = options_.memory;
    timing.model = nullptr;
    fetch_ = std::make_unique<AxiPort>(
        timing, AxiShape{.beat_bytes = 4, .read_bytes = 4, .write_bytes = 4}, program_);
    return kAddress;
  }

  /// A whole run, from the reset to the interrupt.
  EngineTrace run(const std::vector<uint32_t>& words, systolic::MainMemory& memory,
                  const BenchOptions& options) {
    begin(memory, options);
    start(words);
    return finish();
  }

  /// Registers and words of a run, and its start.
  void start(const std::vector<uint32_t>& words) {
    set("mode", config_.controller.serial ? 1 : 0);
    set("watchdog", options_.watchdog);
    set("interrupt_enable", 3);
    size_t next = 0;
    if (options_.fetch) {
      set("program_low", set_program(words));
    }
    set("program_words", options_.fetch ? static_cast<uint32_t>(words.size()) : 0);
    if (!options_.fetch) {
      room_ = read("room");
      while (next < words.size() && next < static_cast<size_t>(options_.words_before_start)) {
        push(words[next++]);
      }
    }
    set("start", 1);
    while (!options_.fetch && next < words.size() && !interrupt_) {
      push(words[next++]);
    }
    finish_pushes();
  }

  EngineTrace finish() {
    while (!interrupt_) {
      tick();
    }
    for (const AxiPort& port : axi_) {
      trace_.held += port.held();
    }
    for (const ControlRegister& entry : kControlRegisters) {
      if (entry.name != "push" && entry.name != "start") {
        trace_.control[entry.name] = read(entry.name);
      }
    }
    return trace_;
  }

  /// One cycle.
  void tick() {
    if (++now_ > options_.cycle_limit) {
      throw std::runtime_error("no end within the cycle limit");
    }
    drive_control(host_->drive());
    for (size_t p = 0; p < axi_.size(); ++p) {
      drive(p, axi_[p].drive(now_), axi_[p]);
    }
    drive_fetch(fetch_->drive(now_));
    model_->clock = 0;
    model_->eval();
    interrupt_ = model_->interrupt_request != 0;
    if (model_->runs) {
      observe(trace_.cycles++);
    }
    const ControlHost::Seen seen_by_host = see_control();
    std::vector<AxiPort::Seen> seen;
    for (size_t p = 0; p < axi_.size(); ++p) {
      seen.push_back(see(p));
    }
    const AxiPort::Seen fetched{.ar_valid = model_->fetch_ar_valid != 0,
                                .ar_address = model_->fetch_ar_address,
                                .ar_beats = model_->fetch_ar_length + 1,
                                .r_ready = model_->fetch_r_ready != 0};
    model_->clock = 1;
    model_->eval();
    host_->clock(seen_by_host);
    for (size_t p = 0; p < axi_.size(); ++p) {
      axi_[p].clock(now_, seen[p]);
    }
    fetch_->clock(now_, fetched);
  }

 private:
  static constexpr uint32_t kSlaveError = 2;

  void set(std::string_view name, uint32_t data) {
    if (!write(name, data)) {
      throw std::runtime_error("the write of a register was refused: " + std::string(name));
    }
  }

  void take_push_answers() {
    while (const auto answer = host_->take_write_answer()) {
      --writes_open_;
      refused_pushes_ += answer->refused ? 1 : 0;
    }
  }

  void drive_control(const ControlHost::Driven& driven) {
    model_->control_aw_valid = driven.aw_valid;
    model_->control_aw_address = static_cast<uint8_t>(driven.aw_address);
    model_->control_w_valid = driven.w_valid;
    model_->control_w_data = driven.w_data;
    model_->control_w_strobe = static_cast<uint8_t>(driven.w_strobe);
    model_->control_b_ready = driven.b_ready;
    model_->control_ar_valid = driven.ar_valid;
    model_->control_ar_address = static_cast<uint8_t>(driven.ar_address);
    model_->control_r_ready = driven.r_ready;
  }

  ControlHost::Seen see_control() const {
    return {.aw_ready = model_->control_aw_ready != 0,
            .w_ready = model_->control_w_ready != 0,
            .b_valid = model_->control_b_valid != 0,
            .b_resp = model_->control_b_resp,
            .ar_ready = model_->control_ar_ready != 0,
            .r_valid = model_->control_r_valid != 0,
            .r_data = model_->control_r_data,
            .r_resp = model_->control_r_resp};
  }

  void drive_fetch(const AxiPort::Driven& driven) {
    model_->fetch_ar_ready = driven.ar_ready;
    model_->fetch_r_valid = driven.r_valid;
    model_->fetch_r_resp = driven.r_error ? kSlaveError : 0;
    uint32_t word = 0;
    if (driven.r_valid) {
      const auto beat = fetch_->beat(driven.r_address);
      for (size_t i = 0; i < beat.size(); ++i) {
        word |= static_cast<uint32_t>(beat[i]) << (8 * i);
      }
    }
    model_->fetch_r_data = word;
  }

  void drive(size_t port, const AxiPort::Driven& driven, const AxiPort& axi) {
    set_bits(model_->ar_ready, port, 1, driven.ar_ready);
    set_bits(model_->r_valid, port, 1, driven.r_valid);
    set_bits(model_->r_resp, port * 2, 2, driven.r_error ? kSlaveError : 0);
    set_bits(model_->aw_ready, port, 1, driven.aw_ready);
    set_bits(model_->w_ready, port, 1, driven.w_ready);
    set_bits(model_->b_valid, port, 1, driven.b_valid);
    set_bits(model_->b_resp, port * 2, 2, driven.b_error ? kSlaveError : 0);
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

  void observe(int64_t cycle) {
    const auto note = [&](bool happens, std::vector<int64_t>& list) {
      if (happens) {
        list.push_back(cycle);
      }
    };
    note(model_->decodes, trace_.accepted);
    note(model_->issues, trace_.issues);
    note(model_->load_starts, trace_.load_starts);
    note(model_->load_finishes, trace_.load_finishes);
    note(model_->store_starts, trace_.store_starts);
    note(model_->store_finishes, trace_.store_finishes);
    const auto columns = static_cast<size_t>(config_.shape.columns);
    const auto width = static_cast<size_t>(config_.formats.accumulator.width());
    if (model_->writes) {
      systolic::AccumulatorWrite write{.cycle = cycle, .row = model_->write_row};
      for (size_t c = 0; c < columns; ++c) {
        write.data.push_back(static_cast<uint32_t>(get_bits(model_->write_data, c * width, width)));
      }
      trace_.writes.push_back(std::move(write));
    }
    const bool keeps = options_.register_period > 0 && cycle % options_.register_period == 0;
    trace_.registers.push_back(keeps ? engine_registers(*model_, config_, blocks_)
                                     : std::vector<uint32_t>{});
  }

  systolic::MachineConfig config_;
  ArrayBlocks blocks_;
  BenchOptions options_;
  std::unique_ptr<Model> model_;
  std::vector<AxiPort> axi_;
  std::vector<std::byte> program_;
  std::unique_ptr<AxiPort> fetch_;
  std::unique_ptr<ControlHost> host_;
  uint32_t room_ = 0;
  int writes_open_ = 0;
  int refused_pushes_ = 0;
  bool interrupt_ = false;
  int64_t now_ = 0;
  EngineTrace trace_;
};

}  // namespace flashloom::rtl
