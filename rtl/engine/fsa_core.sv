// The matrix engine: controller, scratchpad, array, accumulators and their memory. Instructions
// come decoded from the queue; the DMA writes the scratchpad and reads the sums.
`include "fsa_config.sv"

module fsa_core (
    input  logic                     clock,
    input  logic                     reset,
    input  logic                     valid,
    input  logic [95:0]              instruction,
    input  logic                     serial,
    output logic                     open,
    output logic                     ready,
    output logic                     busy,
    output logic                     release_valid,
    output logic [4:0]               release_semaphore,
    output logic [2:0]               release_value,
    // DMA ports.
    input  logic [fsa_config::PORTS-1:0]                            spad_valid,
    output logic [fsa_config::PORTS-1:0]                            spad_ready,
    input  logic [fsa_config::PORTS*fsa_config::SPAD_BITS-1:0]      spad_port_row,
    input  logic [fsa_config::PORTS*fsa_config::SPAD_BEAT_BITS-1:0] spad_port_beat,
    input  logic [fsa_config::PORTS*fsa_config::BEAT-1:0]           spad_port_data,
    input  logic [fsa_config::PORTS-1:0]                            sums_valid,
    output logic [fsa_config::PORTS-1:0]                            sums_ready,
    input  logic [fsa_config::PORTS*fsa_config::SUMS_BITS-1:0]      sums_port_row,
    input  logic [fsa_config::PORTS*fsa_config::SUMS_BEAT_BITS-1:0] sums_port_beat,
    output logic [fsa_config::PORTS*fsa_config::BEAT-1:0]           sums_port_data,
    // What benches look at.
    output logic [fsa_config::R*fsa_config::C*fsa_config::PE_STATE-1:0] elements,
    output logic [fsa_config::C*fsa_config::CMP_STATE-1:0]              comparators,
    output logic [fsa_config::C*fsa_config::A-1:0]                      scales,
    output logic                                                        writes,
    output logic [fsa_config::SUMS_BITS-1:0]                            write_row,
    output logic [fsa_config::C*fsa_config::A-1:0]                      write_data
);
  localparam int R = fsa_config::R;
  localparam int C = fsa_config::C;
  localparam int E = fsa_config::E;
  localparam int A = fsa_config::A;
  localparam int B = fsa_config::BLOCK_C;

  logic [R*fsa_config::CONTROL_BITS-1:0] controls;
  logic [fsa_config::SIGNALS-1:0] active;
  logic [fsa_config::PIECE_BITS-1:0] piece;
  logic [8:0] mask;
  logic [fsa_config::SPAD_BITS-1:0] spad_row;
  logic [fsa_config::SUMS_BITS-1:0] sums_row;
  logic reverse_in, reverse_out, delay, zero;
  fsa_controller controller (
      .clock(clock), .reset(reset), .valid(valid), .instruction(instruction),
      .serial(serial), .open(open), .ready(ready), .busy(busy),
      .release_valid(release_valid), .release_semaphore(release_semaphore),
      .release_value(release_value), .controls(controls), .active(active), .piece(piece),
      .mask(mask), .spad_row(spad_row), .reverse_in(reverse_in), .reverse_out(reverse_out),
      .delay(delay), .sums_row(sums_row), .zero(zero));

  // Left border: a row of the scratchpad, or one word for all rows.
  logic reads_spad, is_constant;
  logic [E-1:0] constant;
  assign reads_spad = active[fsa_config::SIGNAL_SPAD_READ];
  always_comb begin
    is_constant = 1'b0;
    constant = '0;
    if (active[fsa_config::SIGNAL_CONSTANT_ONE]) begin
      is_constant = 1'b1;
      constant = fsa_config::ELEMENT_ONE;
    end
    if (active[fsa_config::SIGNAL_CONSTANT_SCALE]) begin
      is_constant = 1'b1;
      constant = fsa_config::STREAMED_SCALE;
    end
    if (active[fsa_config::SIGNAL_CONSTANT_SLOPES]) begin
      is_constant = 1'b1;
      constant = fsa_config::STREAMED_SLOPES[piece*E+:E];
    end
  end
  logic left_valid, left_constant, left_reverse_in, left_reverse_out, left_delay;
  logic [E-1:0] left_word;
  always_ff @(posedge clock) begin
    if (reset) begin
      left_valid <= 1'b0;
      left_constant <= 1'b0;
      left_word <= '0;
      left_reverse_in <= 1'b0;
      left_reverse_out <= 1'b0;
      left_delay <= 1'b0;
    end else begin
      // What was there last stays while nothing new comes.
      left_valid <= reads_spad || is_constant;
      if (reads_spad || is_constant) begin
        left_constant <= is_constant;
        left_word <= constant;
        left_reverse_in <= reads_spad && reverse_in;
        left_reverse_out <= reads_spad && reverse_out;
        left_delay <= is_constant || delay;
      end
    end
  end
  logic [R*E-1:0] spad_data, lefts;
  fsa_sram #(
      .ROWS(fsa_config::SPAD_ROWS), .BITS(R * E), .BEAT(fsa_config::BEAT),
      .PORTS(fsa_config::PORTS), .PORTS_WRITE(1'b1)
  ) spad (
      .clock(clock), .read(reads_spad), .read_row(spad_row), .read_data(spad_data), .write(1'b0),
      .write_row('0), .write_data('0), .port_valid(spad_valid), .port_ready(spad_ready),
      .port_row(spad_port_row), .port_beat(spad_port_beat), .port_write_data(spad_port_data),
      .port_read_data(spad_unused));
  logic [fsa_config::PORTS*fsa_config::BEAT-1:0] spad_unused;
  fsa_delayer #(.COUNT(R), .WIDTH(E)) left_delayer (
      .clock(clock), .reset(reset), .valid(left_valid), .reverse_in(left_reverse_in),
      .delay(left_delay), .reverse_out(left_reverse_out),
      .in(left_constant ? {R{left_word}} : spad_data), .out(lefts));

  // Comparators' commands.
  logic [2:0] command;
  logic command_valid;
  always_comb begin
    command = 3'd0;
    if (active[fsa_config::SIGNAL_COMPARE_SEND_MAX]) command = 3'd1;
    if (active[fsa_config::SIGNAL_COMPARE_SEND_DIFFERENCE]) command = 3'd2;
    if (active[fsa_config::SIGNAL_COMPARE_SEND_ZERO]) command = 3'd3;
    if (active[fsa_config::SIGNAL_COMPARE_RESET]) command = 3'd4;
    if (active[fsa_config::SIGNAL_COMPARE_SEND_INTERCEPTS]) command = 3'd5;
    command_valid = active[fsa_config::SIGNAL_COMPARE_UPDATE] || command != 3'd0;
  end
  logic [C*A-1:0] array_out, sums;
  fsa_array array (
      .clock(clock), .reset(reset), .controls(controls), .lefts(lefts),
      .command_valid(command_valid), .command(command), .mask(mask), .sums(array_out),
      .elements(elements), .comparators(comparators));
  // Column c waits C - 1 - c cycles for the last one.
  fsa_delayer #(.COUNT(C), .WIDTH(A)) sums_delayer (
      .clock(clock), .reset(reset), .valid(1'b1), .reverse_in(1'b1), .delay(1'b1),
      .reverse_out(1'b1), .in(array_out), .out(sums));

  // Accumulators. A row is read a cycle before the command that uses it, and written in its cycle.
  logic [2:0] sum_command;
  logic sum_valid, reads_sums, read_zero;
  assign reads_sums = active[fsa_config::SIGNAL_ACCUMULATOR_READ];
  always_comb begin
    sum_command = 3'd0;
    sum_valid = active[fsa_config::SIGNAL_ACCUMULATE_EXP_S1];
    if (active[fsa_config::SIGNAL_ACCUMULATE_EXP_S2]) sum_command = 3'd1;
    if (active[fsa_config::SIGNAL_ACCUMULATE_SUM]) sum_command = 3'd2;
    if (active[fsa_config::SIGNAL_ACCUMULATE_SCALE]) sum_command = 3'd3;
    if (active[fsa_config::SIGNAL_ACCUMULATE_SET_SCALE]) sum_command = 3'd4;
    if (active[fsa_config::SIGNAL_ACCUMULATE_RECIPROCAL]) sum_command = 3'd5;
    sum_valid = sum_valid || sum_command != 3'd0;
    writes = active[fsa_config::SIGNAL_ACCUMULATE_SUM]
             || active[fsa_config::SIGNAL_ACCUMULATE_SCALE];
  end
  always_ff @(posedge clock) begin
    if (reset) begin
      read_zero <= 1'b0;
      write_row <= '0;
    end else if (reads_sums) begin
      read_zero <= zero;
      write_row <= sums_row;
    end
  end
  logic [C*A-1:0] sums_data, old_sums;
  assign old_sums = read_zero ? '0 : sums_data;
  fsa_sram #(
      .ROWS(fsa_config::SUMS_ROWS), .BITS(C * A), .BEAT(fsa_config::BEAT),
      .PORTS(fsa_config::PORTS), .PORTS_WRITE(1'b0)
  ) sums_memory (
      .clock(clock), .read(reads_sums), .read_row(sums_row), .read_data(sums_data),
      .write(writes), .write_row(write_row), .write_data(write_data), .port_valid(sums_valid),
      .port_ready(sums_ready), .port_row(sums_port_row), .port_beat(sums_port_beat),
      .port_write_data('0), .port_read_data(sums_port_data));
  genvar c;
  generate
    for (c = 0; c < C / B; c = c + 1) begin : block
      fsa_accumulator_row accumulators (
          .clock(clock), .reset(reset), .valid(sum_valid), .command(sum_command),
          .array_in(sums[c*B*A+:B*A]), .sram_in(old_sums[c*B*A+:B*A]),
          .out(write_data[c*B*A+:B*A]), .scales(scales[c*B*A+:B*A]));
    end
  endgenerate
endmodule
