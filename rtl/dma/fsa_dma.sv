// The DMA: loads into the scratchpad and stores of sums, each in its own queue, over PORTS AXI
// ports. One burst a row, single ID, a whole row of the SRAM; rows must not cross 4 KiB.
`include "fsa_config.sv"

module fsa_dma (
    input  logic         clock,
    input  logic         reset,
    input  logic         push_load,
    input  logic         push_store,
    input  logic [127:0] pushed,
    output logic         load_room,
    output logic         store_room,
    output logic         idle,
    output logic         under_way,   // a transfer is, of either direction
    output logic         load_error,  // memory answered so, in this cycle
    output logic         store_error,
    // Semaphores.
    output logic         load_asks,
    output logic [4:0]   load_semaphore,
    output logic [2:0]   load_value,
    input  logic         load_may,
    output logic         load_starts,
    output logic         load_finishes,
    output logic         load_releases,
    output logic [4:0]   load_released,
    output logic [2:0]   load_released_value,
    output logic         store_asks,
    output logic [4:0]   store_semaphore,
    output logic [2:0]   store_value,
    input  logic         store_may,
    output logic         store_starts,
    output logic         store_finishes,
    output logic         store_releases,
    output logic [4:0]   store_released,
    output logic [2:0]   store_released_value,
    // SRAMs.
    output logic [fsa_config::PORTS-1:0]                            spad_valid,
    input  logic [fsa_config::PORTS-1:0]                            spad_ready,
    output logic [fsa_config::PORTS*fsa_config::SPAD_BITS-1:0]      spad_row,
    output logic [fsa_config::PORTS*fsa_config::SPAD_BEAT_BITS-1:0] spad_beat,
    output logic [fsa_config::PORTS*fsa_config::BEAT-1:0]           spad_data,
    output logic [fsa_config::PORTS-1:0]                            sums_valid,
    input  logic [fsa_config::PORTS-1:0]                            sums_ready,
    output logic [fsa_config::PORTS*fsa_config::SUMS_BITS-1:0]      sums_row,
    output logic [fsa_config::PORTS*fsa_config::SUMS_BEAT_BITS-1:0] sums_beat,
    input  logic [fsa_config::PORTS*fsa_config::BEAT-1:0]           sums_data,
    // AXI, a field of all ports behind one another.
    output logic [fsa_config::PORTS-1:0]                  ar_valid,
    input  logic [fsa_config::PORTS-1:0]                  ar_ready,
    output logic [fsa_config::PORTS*39-1:0]               ar_address,
    input  logic [fsa_config::PORTS-1:0]                  r_valid,
    output logic [fsa_config::PORTS-1:0]                  r_ready,
    input  logic [fsa_config::PORTS*fsa_config::BEAT-1:0] r_data,
    input  logic [fsa_config::PORTS*2-1:0]                r_resp,
    output logic [fsa_config::PORTS-1:0]                  aw_valid,
    input  logic [fsa_config::PORTS-1:0]                  aw_ready,
    output logic [fsa_config::PORTS*39-1:0]               aw_address,
    output logic [fsa_config::PORTS-1:0]                  w_valid,
    input  logic [fsa_config::PORTS-1:0]                  w_ready,
    output logic [fsa_config::PORTS*fsa_config::BEAT-1:0] w_data,
    output logic [fsa_config::PORTS-1:0]                  w_last,
    input  logic [fsa_config::PORTS-1:0]                  b_valid,
    input  logic [fsa_config::PORTS*2-1:0]                b_resp,
    output logic [fsa_config::PORTS-1:0]                  b_ready
);
  localparam int PORTS = fsa_config::PORTS;
  localparam int BEAT = fsa_config::BEAT;
  localparam int SPAD = fsa_config::SPAD_BITS;
  localparam int SPAD_B = fsa_config::SPAD_BEAT_BITS;
  localparam int SUMS = fsa_config::SUMS_BITS;
  localparam int SUMS_B = fsa_config::SUMS_BEAT_BITS;

  logic [127:0] load, store;
  logic [PORTS-1:0] loads_room, loads_done, stores_room, stores_done;
  logic load_idle, store_idle, loads_under_way, stores_under_way;
  assign idle = load_idle && store_idle;
  assign under_way = loads_under_way || stores_under_way;
  fsa_transfers #(
      .PORTS(PORTS), .QUEUE(fsa_config::LOAD_QUEUE), .JOBS(fsa_config::LOAD_QUEUE)
  ) loads (
      .clock(clock), .reset(reset), .push(push_load), .pushed(pushed), .room(load_room),
      .idle(load_idle), .instruction(load), .asks(load_asks), .number(load_semaphore),
      .value(load_value), .may(load_may), .starts(load_starts), .ports_room(loads_room),
      .ports_done(loads_done), .under_way(loads_under_way), .finishes(load_finishes),
      .releases(load_releases), .released(load_released), .released_value(load_released_value));
  fsa_transfers #(
      .PORTS(PORTS), .QUEUE(fsa_config::STORE_QUEUE), .JOBS(fsa_config::STORE_QUEUE)
  ) stores (
      .clock(clock), .reset(reset), .push(push_store), .pushed(pushed), .room(store_room),
      .idle(store_idle), .instruction(store), .asks(store_asks), .number(store_semaphore),
      .value(store_value), .may(store_may), .starts(store_starts), .ports_room(stores_room),
      .ports_done(stores_done), .under_way(stores_under_way), .finishes(store_finishes),
      .releases(store_releases), .released(store_released), .released_value(store_released_value));

  logic [PORTS*9-1:0] load_rows, store_rows;
  logic [PORTS*SPAD-1:0] load_row;
  logic [PORTS*SUMS-1:0] store_row;
  logic [PORTS*39-1:0] load_address, store_address;
  logic [SPAD-1:0] load_row_stride;
  logic [SUMS-1:0] store_row_stride;
  logic [38:0] load_stride, store_stride;
  fsa_dma_split #(.PORTS(PORTS), .ROW_BITS(SPAD)) load_split (
      .instruction(load), .rows(load_rows), .first_row(load_row), .first_address(load_address),
      .row_stride(load_row_stride), .address_stride(load_stride));
  fsa_dma_split #(.PORTS(PORTS), .ROW_BITS(SUMS)) store_split (
      .instruction(store), .rows(store_rows), .first_row(store_row),
      .first_address(store_address), .row_stride(store_row_stride),
      .address_stride(store_stride));

  // SLVERR and DECERR.
  logic [PORTS-1:0] load_errors, store_errors;
  assign load_error = |load_errors;
  assign store_error = |store_errors;
  logic unused;
  assign unused = &{1'b0, r_resp, b_resp};

  genvar p;
  generate
    for (p = 0; p < PORTS; p = p + 1) begin : port
      assign load_errors[p] = r_valid[p] && r_ready[p] && r_resp[p*2+1];
      assign store_errors[p] = b_valid[p] && b_ready[p] && b_resp[p*2+1];
      fsa_load_port #(
          .ROW_BITS(SPAD), .BEATS(fsa_config::SPAD_BEATS), .BEAT(BEAT),
          .JOBS(fsa_config::LOAD_QUEUE), .OUTSTANDING(fsa_config::OUTSTANDING)
      ) reads (
          .clock(clock), .reset(reset), .push(load_starts), .room(loads_room[p]),
          .rows(load_rows[p*9+:9]), .first_row(load_row[p*SPAD+:SPAD]),
          .row_stride(load_row_stride), .first_address(load_address[p*39+:39]),
          .address_stride(load_stride), .done(loads_done[p]), .ar_valid(ar_valid[p]),
          .ar_ready(ar_ready[p]), .ar_address(ar_address[p*39+:39]), .r_valid(r_valid[p]),
          .r_ready(r_ready[p]), .r_data(r_data[p*BEAT+:BEAT]), .sram_valid(spad_valid[p]),
          .sram_ready(spad_ready[p]), .sram_row(spad_row[p*SPAD+:SPAD]),
          .sram_beat(spad_beat[p*SPAD_B+:SPAD_B]), .sram_data(spad_data[p*BEAT+:BEAT]));
      fsa_store_port #(
          .ROW_BITS(SUMS), .BEATS(fsa_config::SUMS_BEATS), .BEAT(BEAT),
          .JOBS(fsa_config::STORE_QUEUE), .OUTSTANDING(fsa_config::OUTSTANDING)
      ) writes (
          .clock(clock), .reset(reset), .push(store_starts), .room(stores_room[p]),
          .rows(store_rows[p*9+:9]), .first_row(store_row[p*SUMS+:SUMS]),
          .row_stride(store_row_stride), .first_address(store_address[p*39+:39]),
          .address_stride(store_stride), .done(stores_done[p]), .aw_valid(aw_valid[p]),
          .aw_ready(aw_ready[p]), .aw_address(aw_address[p*39+:39]), .w_valid(w_valid[p]),
          .w_ready(w_ready[p]), .w_data(w_data[p*BEAT+:BEAT]), .w_last(w_last[p]),
          .b_valid(b_valid[p]), .b_ready(b_ready[p]), .sram_valid(sums_valid[p]),
          .sram_ready(sums_ready[p]), .sram_row(sums_row[p*SUMS+:SUMS]),
          .sram_beat(sums_beat[p*SUMS_B+:SUMS_B]), .sram_data(sums_data[p*BEAT+:BEAT]));
    end
  endgenerate
endmodule
