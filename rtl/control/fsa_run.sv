// A run from its start to its end or first error, and the registers that the host writes. A start
// resets engine and counters; memories of the engine keep what they hold.
`include "fsa_config.sv"

module fsa_run (
    input  logic        clock,
    input  logic        reset,
    input  logic        write,
    input  logic [5:0]  write_number,
    input  logic [31:0] write_data,
    output logic        write_refused,
    // Words.
    input  logic        has_room,
    output logic        push,
    output logic [38:0] program_address,
    output logic [31:0] program_words,    // 0: the host pushes them
    output logic        flush,
    // The engine.
    output logic        start,
    output logic        active,           // the decoder may have words
    output logic        serial,
    input  logic        stopped,
    input  logic        quiet,            // nothing under way, memory owes nothing
    input  logic [3:0]  wrong,            // what the decoder says of its word
    input  logic        fetch_error,
    input  logic        load_error,
    input  logic        store_error,
    input  logic        ended,            // a fetched program, without a stop
    input  logic        progress,         // something moved in this cycle
    input  logic [31:0] cycle,
    input  logic [31:0] instruction,
    // What can be read.
    output logic [1:0]  state,
    output logic [3:0]  error,
    output logic [31:0] error_instruction,
    output logic [31:0] error_cycle,
    output logic [31:0] watchdog,
    output logic [1:0]  interrupt_enable,
    output logic [1:0]  interrupts,
    output logic        interrupt_request
);
  localparam logic [1:0] kIdle = 2'(fsa_config::STATE_IDLE);
  localparam logic [1:0] kActive = 2'(fsa_config::STATE_ACTIVE);
  localparam logic [1:0] kDone = 2'(fsa_config::STATE_DONE);
  localparam logic [1:0] kFailed = 2'(fsa_config::STATE_FAILED);

  logic busy, may_start, writes_start, writes_program, known;
  assign busy = state == kActive;
  assign active = busy;
  assign may_start = !busy && quiet;
  assign writes_start = write_number == 6'(fsa_config::REGISTER_START);
  // What a run stands on must not change under it.
  assign writes_program = write_number == 6'(fsa_config::REGISTER_MODE)
                          || write_number == 6'(fsa_config::REGISTER_PROGRAM_LOW)
                          || write_number == 6'(fsa_config::REGISTER_PROGRAM_HIGH)
                          || write_number == 6'(fsa_config::REGISTER_PROGRAM_WORDS)
                          || write_number == 6'(fsa_config::REGISTER_WATCHDOG);
  assign known = write_number == 6'(fsa_config::REGISTER_INTERRUPT)
                 || write_number == 6'(fsa_config::REGISTER_INTERRUPT_ENABLE);
  always_comb begin
    if (write_number == 6'(fsa_config::REGISTER_PUSH))
      write_refused = !has_room || program_words != '0 || state == kFailed;
    else if (writes_start) write_refused = !may_start;
    else if (writes_program) write_refused = busy;
    else write_refused = !known;
  end
  logic accepted;
  assign accepted = write && !write_refused;
  assign push = accepted && write_number == 6'(fsa_config::REGISTER_PUSH);
  assign start = accepted && writes_start && write_data[0];

  logic [31:0] still;  // cycles without progress
  logic [3:0] error_now;
  always_comb begin
    error_now = wrong;
    if (ended && !stopped) error_now = 4'(fsa_config::ERROR_NO_STOP);
    if (watchdog != '0 && still == watchdog) error_now = 4'(fsa_config::ERROR_WATCHDOG);
    if (store_error) error_now = 4'(fsa_config::ERROR_STORE);
    if (load_error) error_now = 4'(fsa_config::ERROR_LOAD);
    if (fetch_error) error_now = 4'(fsa_config::ERROR_FETCH);
  end
  logic fails, ends;
  assign fails = busy && error_now != '0;
  assign ends = busy && !fails && stopped && quiet;
  assign flush = state == kFailed || (ends && program_words != '0);
  assign interrupt_request = |(interrupts & interrupt_enable);

  always_ff @(posedge clock) begin
    if (reset) begin
      state <= kIdle;
      error <= '0;
      error_instruction <= '0;
      error_cycle <= '0;
      still <= '0;
      serial <= fsa_config::SERIAL;
      program_address <= '0;
      program_words <= '0;
      watchdog <= '0;
      interrupt_enable <= '0;
      interrupts <= '0;
    end else begin
      still <= !busy || progress ? '0 : still + 32'd1;
      if (accepted) begin
        case (write_number)
          6'(fsa_config::REGISTER_MODE): serial <= write_data[0];
          6'(fsa_config::REGISTER_PROGRAM_LOW):
            program_address[31:0] <= {write_data[31:2], 2'b0};
          6'(fsa_config::REGISTER_PROGRAM_HIGH): program_address[38:32] <= write_data[6:0];
          6'(fsa_config::REGISTER_PROGRAM_WORDS): program_words <= write_data;
          6'(fsa_config::REGISTER_WATCHDOG): watchdog <= write_data;
          6'(fsa_config::REGISTER_INTERRUPT_ENABLE): interrupt_enable <= write_data[1:0];
          6'(fsa_config::REGISTER_INTERRUPT): interrupts <= interrupts & ~write_data[1:0];
          default: ;
        endcase
      end
      if (start) begin
        state <= kActive;
        error <= '0;
        error_instruction <= '0;
        error_cycle <= '0;
      end else if (fails) begin
        state <= kFailed;
        error <= error_now;
        error_instruction <= instruction;
        error_cycle <= cycle;
        interrupts[1] <= 1'b1;
      end else if (ends) begin
        state <= kDone;
        interrupts[0] <= 1'b1;
      end
    end
  end
endmodule
