// Matrix engine and DMA: a stream of instruction words in, AXI memory ports out. fsa_system puts
// the control registers before it.
`include "fsa_config.sv"

module fsa_engine (
    input  logic        clock,
    input  logic        reset,
    input  logic        word_valid,
    output logic        word_ready,
    input  logic [31:0] word,
    input  logic        serial,   // matrix instructions wait for all before them
    output logic        stopped,  // a fence with `stop` has ended the program
    output logic        idle,     // nothing is under way or waits in a queue
    output logic [3:0]  wrong,    // why the word that is there cannot be taken (ERROR_…)
    output logic [31:0] number,   // of the instruction that is being decoded
    output logic        load_error,   // memory answered so, in this cycle
    output logic        store_error,
    // What counters count.
    output logic        decodes_matrix,
    output logic        decodes_dma,
    output logic        decodes_fence,
    output logic        matrix_busy,
    output logic        dma_busy,
    output logic        wants_instruction,  // one could enter, and none is there
    output logic        waits_array,        // for the plan
    output logic        waits_drain,        // for all instructions before
    output logic        waits_semaphore,
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
    output logic [fsa_config::PORTS-1:0]                  b_ready,
    // What benches look at; nothing is taken from here.
    output logic issues,
    output logic load_starts,
    output logic load_finishes,
    output logic store_starts,
    output logic store_finishes,
    output logic [fsa_config::R*fsa_config::C*fsa_config::PE_STATE-1:0] elements,
    output logic [fsa_config::C*fsa_config::CMP_STATE-1:0]              comparators,
    output logic [fsa_config::C*fsa_config::A-1:0]                      scales,
    output logic                                                        writes,
    output logic [fsa_config::SUMS_BITS-1:0]                            write_row,
    output logic [fsa_config::C*fsa_config::A-1:0]                      write_data
);
  logic matrix_full, matrix_empty, load_room, store_room, core_busy, core_open;
  logic dma_idle;
  logic push_matrix, push_load, push_store;
  logic [127:0] decoded;
  fsa_decoder decoder (
      .clock(clock), .reset(reset), .word_valid(word_valid), .word_ready(word_ready), .word(word),
      .matrix_room(!matrix_full), .load_room(load_room), .store_room(store_room),
      .matrix_idle(matrix_empty && !core_busy), .dma_idle(dma_idle), .push_matrix(push_matrix),
      .push_load(push_load), .push_store(push_store), .passes_fence(decodes_fence),
      .instruction(decoded), .number(number), .stopped(stopped), .wrong(wrong));
  assign idle = matrix_empty && !core_busy && dma_idle;
  assign decodes_matrix = push_matrix;
  assign decodes_dma = push_load || push_store;
  assign matrix_busy = core_busy;
  assign waits_array = !core_open;
  assign wants_instruction = core_open && matrix_empty;
  assign waits_drain = core_open && !matrix_empty && !core_ready;
  assign waits_semaphore = !matrix_empty && core_ready && !matrix_may;

  logic [95:0] head;
  fsa_fifo #(.WIDTH(96), .DEPTH(fsa_config::MATRIX_QUEUE)) matrix_queue (
      .clock(clock), .reset(reset), .push(push_matrix), .in(decoded[95:0]), .pop(issues),
      .head(head), .empty(matrix_empty), .full(matrix_full));

  logic matrix_may, core_ready, load_asks, load_may, store_asks, store_may;
  logic core_releases, load_releases, store_releases;
  logic [4:0] load_semaphore, store_semaphore, core_released, load_released, store_released;
  logic [2:0] load_value, store_value, core_value, load_released_value, store_released_value;
  assign issues = !matrix_empty && matrix_may && core_ready;
  fsa_semaphores semaphores (
      .clock(clock), .reset(reset),
      .matrix_asks(head[fsa_config::F_MATRIX_ACQUIRE_WORD*32+fsa_config::F_MATRIX_ACQUIRE_LOW]),
      .matrix_semaphore(head[fsa_config::F_MATRIX_SEMAPHORE_WORD*32
                             +fsa_config::F_MATRIX_SEMAPHORE_LOW+:5]),
      .matrix_value(head[fsa_config::F_MATRIX_ACQUIRE_VALUE_WORD*32
                         +fsa_config::F_MATRIX_ACQUIRE_VALUE_LOW+:3]),
      .second_asks(head[fsa_config::F_MATRIX_SECOND_ACQUIRE_WORD*32
                        +fsa_config::F_MATRIX_SECOND_ACQUIRE_LOW]),
      .second_semaphore(head[fsa_config::F_MATRIX_SECOND_SEMAPHORE_WORD*32
                             +fsa_config::F_MATRIX_SECOND_SEMAPHORE_LOW+:5]),
      .second_value(head[fsa_config::F_MATRIX_SECOND_ACQUIRE_VALUE_WORD*32
                         +fsa_config::F_MATRIX_SECOND_ACQUIRE_VALUE_LOW+:3]),
      .matrix_may(matrix_may), .matrix_takes(issues), .load_asks(load_asks),
      .load_semaphore(load_semaphore), .load_value(load_value), .load_may(load_may),
      .load_takes(load_starts), .store_asks(store_asks), .store_semaphore(store_semaphore),
      .store_value(store_value), .store_may(store_may), .store_takes(store_starts),
      .matrix_releases(core_releases), .matrix_released(core_released),
      .matrix_released_value(core_value), .load_releases(load_releases),
      .load_released(load_released), .load_released_value(load_released_value),
      .store_releases(store_releases), .store_released(store_released),
      .store_released_value(store_released_value));

  logic [fsa_config::PORTS-1:0] spad_valid, spad_ready, sums_valid, sums_ready;
  logic [fsa_config::PORTS*fsa_config::SPAD_BITS-1:0] spad_row;
  logic [fsa_config::PORTS*fsa_config::SPAD_BEAT_BITS-1:0] spad_beat;
  logic [fsa_config::PORTS*fsa_config::SUMS_BITS-1:0] sums_row;
  logic [fsa_config::PORTS*fsa_config::SUMS_BEAT_BITS-1:0] sums_beat;
  logic [fsa_config::PORTS*fsa_config::BEAT-1:0] spad_data, sums_data;
  fsa_dma dma (
      .clock(clock), .reset(reset), .push_load(push_load), .push_store(push_store),
      .pushed(decoded), .load_room(load_room), .store_room(store_room), .idle(dma_idle),
      .under_way(dma_busy), .load_error(load_error), .store_error(store_error),
      .load_asks(load_asks), .load_semaphore(load_semaphore), .load_value(load_value),
      .load_may(load_may), .load_starts(load_starts), .load_finishes(load_finishes),
      .load_releases(load_releases), .load_released(load_released),
      .load_released_value(load_released_value), .store_asks(store_asks),
      .store_semaphore(store_semaphore), .store_value(store_value), .store_may(store_may),
      .store_starts(store_starts), .store_finishes(store_finishes),
      .store_releases(store_releases), .store_released(store_released),
      .store_released_value(store_released_value), .spad_valid(spad_valid),
      .spad_ready(spad_ready), .spad_row(spad_row), .spad_beat(spad_beat), .spad_data(spad_data),
      .sums_valid(sums_valid), .sums_ready(sums_ready), .sums_row(sums_row),
      .sums_beat(sums_beat), .sums_data(sums_data), .ar_valid(ar_valid), .ar_ready(ar_ready),
      .ar_address(ar_address), .r_valid(r_valid), .r_ready(r_ready), .r_data(r_data),
      .r_resp(r_resp), .aw_valid(aw_valid), .aw_ready(aw_ready), .aw_address(aw_address),
      .w_valid(w_valid), .w_ready(w_ready), .w_data(w_data), .w_last(w_last), .b_valid(b_valid),
      .b_resp(b_resp), .b_ready(b_ready));

  fsa_core core (
      .clock(clock), .reset(reset), .valid(!matrix_empty && matrix_may), .instruction(head),
      .serial(serial), .open(core_open), .ready(core_ready), .busy(core_busy),
      .release_valid(core_releases), .release_semaphore(core_released),
      .release_value(core_value), .spad_valid(spad_valid), .spad_ready(spad_ready),
      .spad_port_row(spad_row), .spad_port_beat(spad_beat), .spad_port_data(spad_data),
      .sums_valid(sums_valid), .sums_ready(sums_ready),
      .sums_port_row(sums_row), .sums_port_beat(sums_beat), .sums_port_data(sums_data),
      .elements(elements), .comparators(comparators), .scales(scales), .writes(writes),
      .write_row(write_row), .write_data(write_data));
endmodule
