// The requests of a port's jobs: an AXI address a row, and for each row asked for, or for a job
// without rows, an entry to the queue of what data will follow.
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
  logic [8:0] job_rows, left;
  logic [ROW_BITS-1:0] job_row, job_row_stride, row, stride;
  logic [38:0] job_address, job_address_stride, address_step;
  assign {job_rows, job_row, job_row_stride, job_address, job_address_stride} = job;

  logic walking, none;
  assign walking = left != '0;
  assign none = !walking && !empty && job_rows == '0;
  assign pop = !walking && !empty && (job_rows != '0 || entry_room);
  assign address_valid = walking && entry_room;
  assign entry_push = (address_valid && address_ready) || (none && entry_room);
  assign entry_row = row;
  assign entry_none = none;
  assign entry_last = none || left == 9'd1;
  always_ff @(posedge clock) begin
    if (reset) begin
      left <= '0;
      row <= '0;
      stride <= '0;
      address <= '0;
      address_step <= '0;
    end else if (pop) begin
      left <= job_rows;
      row <= job_row;
      stride <= job_row_stride;
      address <= job_address;
      address_step <= job_address_stride;
    end else if (address_valid && address_ready) begin
      left <= left - 9'd1;
      row <= row + stride;
      address <= address + address_step;
    end
  end
endmodule
