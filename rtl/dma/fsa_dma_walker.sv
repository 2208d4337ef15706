// The requests of a port's jobs: an AXI address a row, the first in the cycle after the job came,
// and for each row asked for, or for a job without rows, an entry to the queue of what data will
// follow.
module fsa_dma_walker #(
    parameter int ROW_BITS = 6,
    parameter int JOBS = 16
) (
    input  logic                clock,
    input  logic                reset,
    input  logic                push,
    output logic                room,
    input  logic [8:0]          rows,
    input  logic [ROW_BITS-1:0] first_row,
    input  logic [ROW_BITS-1:0] row_stride,
    input  logic [38:0]         first_address,
    input  logic [38:0]         address_stride,
    output logic                address_valid,
    input  logic                address_ready,
    output logic [38:0]         address,
    input  logic                entry_room,
    output logic                entry_push,
    output logic [ROW_BITS-1:0] entry_row,
    output logic                entry_none,     // no data: a job without rows
    output logic                entry_last      // of its job
);
  localparam int W = 9 + 2 * ROW_BITS + 2 * 39;
  logic [W-1:0] job;
  logic empty, full, pop;
  fsa_fifo #(.WIDTH(W), .DEPTH(JOBS)) jobs (
      .clock(clock), .reset(reset), .push(push),
      .in({rows, first_row, row_stride, first_address, address_stride}), .pop(pop), .head(job),
      .empty(empty), .full(full));
  assign room = !full;
  // The head stays while its rows are walked; what has been added to its first row and address:
  logic [8:0] job_rows, walked;
  logic [ROW_BITS-1:0] job_row, row_stride_now, row_offset;
  logic [38:0] job_address, address_stride_now, address_offset;
  assign {job_rows, job_row, row_stride_now, job_address, address_stride_now} = job;

  logic none, last, moves;
  assign none = !empty && job_rows == '0;
  assign last = walked == job_rows - 9'd1;
  assign address_valid = !empty && !none && entry_room;
  assign address = job_address + address_offset;
  assign moves = address_valid && address_ready;
  assign entry_push = moves || (none && entry_room);
  assign entry_row = job_row + row_offset;
  assign entry_none = none;
  assign entry_last = none || last;
  assign pop = (moves && last) || (none && entry_room);
  always_ff @(posedge clock) begin
    if (reset || pop) begin
      walked <= '0;
      row_offset <= '0;
      address_offset <= '0;
    end else if (moves) begin
      walked <= walked + 9'd1;
      row_offset <= row_offset + row_stride_now;
      address_offset <= address_offset + address_stride_now;
    end
  end
endmodule
