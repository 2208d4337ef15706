// One port's loads: rows are asked for ahead, and their beats go to the scratchpad in order.
module fsa_load_port #(
    parameter int ROW_BITS = 6,
    parameter int BEATS = 2,        // of a row
    parameter int BEAT = 64,
    parameter int JOBS = 16,
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
    output logic                 done,           // the last beat of a job is written in this cycle
    // AXI reads.
    output logic                 ar_valid,
    input  logic                 ar_ready,
    output logic [38:0]          ar_address,
    input  logic                 r_valid,
    output logic                 r_ready,
    input  logic [BEAT-1:0]      r_data,
    // The scratchpad.
    output logic                 sram_valid,
    input  logic                 sram_ready,
    output logic [ROW_BITS-1:0]  sram_row,
    output logic [BEAT_BITS-1:0] sram_beat,
    output logic [BEAT-1:0]      sram_data
);
  logic entry_push, entry_none, entry_last, entries_full, empty, none, last, pop;
  logic [ROW_BITS-1:0] entry_row;
  fsa_dma_walker #(.ROW_BITS(ROW_BITS), .JOBS(JOBS)) walker (
      .clock(clock), .reset(reset), .push(push), .room(room), .rows(rows), .first_row(first_row),
      .row_stride(row_stride), .first_address(first_address), .address_stride(address_stride),
      .address_valid(ar_valid), .address_ready(ar_ready), .address(ar_address),
      .entry_room(!entries_full), .entry_push(entry_push), .entry_row(entry_row),
      .entry_none(entry_none), .entry_last(entry_last));
  fsa_fifo #(.WIDTH(ROW_BITS + 2), .DEPTH(OUTSTANDING)) under_way (
      .clock(clock), .reset(reset), .push(entry_push), .in({entry_row, entry_none, entry_last}),
      .pop(pop), .head({sram_row, none, last}), .empty(empty), .full(entries_full));

  logic [BEAT_BITS-1:0] beat;
  logic accepts;
  assign sram_valid = r_valid && !empty && !none;
  assign sram_beat = beat;
  assign sram_data = r_data;
  assign r_ready = sram_ready && !empty && !none;
  assign accepts = sram_valid && sram_ready;
  assign pop = !empty && (none || (accepts && beat == BEAT_BITS'(BEATS - 1)));
  assign done = pop && last;
  always_ff @(posedge clock) begin
    if (reset) beat <= '0;
    else if (accepts) beat <= beat == BEAT_BITS'(BEATS - 1) ? '0 : beat + BEAT_BITS'(1);
  end
endmodule
