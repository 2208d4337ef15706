// One port's stores: beats are read from the accumulators' memory into a short queue and sent; a
// job is done when memory has answered its last row.
module fsa_store_port #(
    parameter int ROW_BITS = 4,
    parameter int BEATS = 4,
    parameter int BEAT = 64,
    parameter int JOBS = 8,
    parameter int OUTSTANDING = 16,
    localparam int BEAT_BITS = BEATS == 1 ? 1 : $clog2(BEATS)
) (
    input  logic                 clock,
    input  logic                 reset,
    input  logic                 push,
    output logic                 room,
    input  logic [8:0]           rows,
    input  logic [ROW_BITS-1:0]  first_row,
    input  logic [ROW_BITS-1:0]  row_stride,
    input  logic [38:0]          first_address,
    input  logic [38:0]          address_stride,
    output logic                 done,
    // AXI writes.
    output logic                 aw_valid,
    input  logic                 aw_ready,
    output logic [38:0]          aw_address,
    output logic                 w_valid,
    input  logic                 w_ready,
    output logic [BEAT-1:0]      w_data,
    output logic                 w_last,
    input  logic                 b_valid,
    output logic                 b_ready,
    // The accumulators' memory; data come a cycle after an accepted read.
    output logic                 sram_valid,
    input  logic                 sram_ready,
    output logic [ROW_BITS-1:0]  sram_row,
    output logic [BEAT_BITS-1:0] sram_beat,
    input  logic [BEAT-1:0]      sram_data
);
  logic entry_push, entry_none, entry_last, entries_full, empty, none, last, pop;
  logic [ROW_BITS-1:0] entry_row;
  fsa_dma_walker #(.ROW_BITS(ROW_BITS), .JOBS(JOBS)) walker (
      .clock(clock), .reset(reset), .push(push), .room(room), .rows(rows), .first_row(first_row),
      .row_stride(row_stride), .first_address(first_address), .address_stride(address_stride),
      .address_valid(aw_valid), .address_ready(aw_ready), .address(aw_address),
      .entry_room(!entries_full), .entry_push(entry_push), .entry_row(entry_row),
      .entry_none(entry_none), .entry_last(entry_last));
  fsa_fifo #(.WIDTH(ROW_BITS + 2), .DEPTH(OUTSTANDING)) to_read (
      .clock(clock), .reset(reset), .push(entry_push), .in({entry_row, entry_none, entry_last}),
      .pop(pop), .head({sram_row, none, last}), .empty(empty), .full(entries_full));

  // Beats: two may be in the queue when a third is being read.
  logic [BEAT_BITS-1:0] beat;
  logic reading, reading_last, accepts, beats_empty, beats_full, answers_full;
  logic [1:0] held;  // in the queue or being read
  assign sram_valid = !empty && !none && held != 2'd3 && !answers_full;
  assign sram_beat = beat;
  assign accepts = sram_valid && sram_ready;
  assign pop = !empty && !answers_full && (none || (accepts && beat == BEAT_BITS'(BEATS - 1)));
  logic sent;
  assign sent = w_valid && w_ready;
  always_ff @(posedge clock) begin
    if (reset) begin
      beat <= '0;
      reading <= 1'b0;
      reading_last <= 1'b0;
      held <= '0;
    end else begin
      if (accepts) beat <= beat == BEAT_BITS'(BEATS - 1) ? '0 : beat + BEAT_BITS'(1);
      reading <= accepts;
      reading_last <= beat == BEAT_BITS'(BEATS - 1);
      if (accepts && !sent) held <= held + 2'd1;
      if (sent && !accepts) held <= held - 2'd1;
    end
  end
  fsa_fifo #(.WIDTH(BEAT + 1), .DEPTH(4)) beats (
      .clock(clock), .reset(reset), .push(reading), .in({sram_data, reading_last}), .pop(sent),
      .head({w_data, w_last}), .empty(beats_empty), .full(beats_full));
  assign w_valid = !beats_empty;

  // Rows whose answer is awaited.
  logic answers_empty, answer_none, answer_last, answered;
  fsa_fifo #(.WIDTH(2), .DEPTH(OUTSTANDING)) answers (
      .clock(clock), .reset(reset), .push(pop), .in({none, last}), .pop(answered),
      .head({answer_none, answer_last}), .empty(answers_empty), .full(answers_full));
  assign b_ready = !answers_empty && !answer_none;
  assign answered = !answers_empty && (answer_none || b_valid);
  assign done = answered && answer_last;
  logic unused;
  assign unused = &{1'b0, beats_full};
endmodule
