// One direction of the DMA: instructions wait in order for their semaphore, go to all ports at
// once, and let go of the semaphore when every port has finished. Ports finish in order, so
// transfers do.
`include "fsa_config.sv"

module fsa_transfers #(
    parameter int PORTS = 4,
    parameter int QUEUE = 16,
    parameter int JOBS = 16
) (
    input  logic             clock,
    input  logic             reset,
    input  logic             push,
    input  logic [127:0]     pushed,
    output logic             room,
    output logic             idle,
    output logic [127:0]     instruction,   // the head of the queue
    output logic             asks,
    output logic [4:0]       number,
    output logic [2:0]       value,
    input  logic             may,
    output logic             starts,        // all ports get their rows in this cycle
    input  logic [PORTS-1:0] ports_room,
    input  logic [PORTS-1:0] ports_done,
    output logic             under_way,     // some transfer is
    output logic             finishes,      // with the last of its ports, in the same cycle
    output logic             releases,
    output logic [4:0]       released,
    output logic [2:0]       released_value
);
  logic empty, full, table_empty, table_full;
  fsa_fifo #(.WIDTH(128), .DEPTH(QUEUE)) queue (
      .clock(clock), .reset(reset), .push(push), .in(pushed), .pop(starts), .head(instruction),
      .empty(empty), .full(full));
  assign room = !full;
  assign asks = !empty && instruction[fsa_config::F_DMA_ACQUIRE_WORD*32
                                      +fsa_config::F_DMA_ACQUIRE_LOW];
  assign number = instruction[fsa_config::F_DMA_SEMAPHORE_WORD*32
                                 +fsa_config::F_DMA_SEMAPHORE_LOW+:5];
  assign value = instruction[fsa_config::F_DMA_ACQUIRE_VALUE_WORD*32
                             +fsa_config::F_DMA_ACQUIRE_VALUE_LOW+:3];
  assign starts = !empty && may && (&ports_room) && !table_full;

  logic release_head;
  fsa_fifo #(.WIDTH(9), .DEPTH(JOBS)) started (
      .clock(clock), .reset(reset), .push(starts),
      .in({instruction[fsa_config::F_DMA_RELEASE_WORD*32+fsa_config::F_DMA_RELEASE_LOW],
           number,
           instruction[fsa_config::F_DMA_RELEASE_VALUE_WORD*32
                       +fsa_config::F_DMA_RELEASE_VALUE_LOW+:3]}),
      .pop(finishes), .head({release_head, released, released_value}), .empty(table_empty),
      .full(table_full));
  assign under_way = !table_empty;
  assign idle = empty && table_empty;

  // Jobs that each port has finished of transfers that others have not. An idle port has none: what
  // a port finishes belongs to a transfer in the table.
  localparam int B = $clog2(JOBS + 1);
  logic [PORTS-1:0] has_finished;
  genvar p;
  generate
    for (p = 0; p < PORTS; p = p + 1) begin : port
      logic [B-1:0] ahead;
      assign has_finished[p] = ahead != '0 || ports_done[p];
      always_ff @(posedge clock) begin
        if (reset) ahead <= '0;
        else if (ports_done[p] && !finishes) ahead <= ahead + B'(1);
        else if (finishes && !ports_done[p]) ahead <= ahead - B'(1);
      end
    end
  endgenerate
  assign finishes = &has_finished;
  assign releases = finishes && release_head;
endmodule
