// The accelerator as a host sees it: control registers on AXI4-Lite, an AXI port that fetches
// programs, an interrupt, and the engine's AXI ports to memory.
`include "fsa_config.sv"

module fsa_system (
    input  logic        clock,
    input  logic        reset,
    output logic        interrupt_request,
    // AXI4-Lite, addresses in bytes from the first register on.
    input  logic        control_aw_valid,
    output logic        control_aw_ready,
    input  logic [7:0]  control_aw_address,
    input  logic        control_w_valid,
    output logic        control_w_ready,
    input  logic [31:0] control_w_data,
    input  logic [3:0]  control_w_strobe,
    output logic        control_b_valid,
    input  logic        control_b_ready,
    output logic [1:0]  control_b_resp,
    input  logic        control_ar_valid,
    output logic        control_ar_ready,
    input  logic [7:0]  control_ar_address,
    output logic        control_r_valid,
    input  logic        control_r_ready,
    output logic [31:0] control_r_data,
    output logic [1:0]  control_r_resp,
    // Reads of a program's words.
    output logic        fetch_ar_valid,
    input  logic        fetch_ar_ready,
    output logic [38:0] fetch_ar_address,
    output logic [3:0]  fetch_ar_length,
    input  logic        fetch_r_valid,
    output logic        fetch_r_ready,
    input  logic [31:0] fetch_r_data,
    input  logic [1:0]  fetch_r_resp,
    // The DMA's ports, a field of all of them behind one another.
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
    output logic [fsa_config::PORTS-1:0]                  b_ready,
    input  logic [fsa_config::PORTS*2-1:0]                b_resp,
    // What benches look at; nothing is taken from here.
    output logic runs,     // a program, until its stop
    output logic decodes,  // takes a word
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
  logic register_write, register_write_refused, register_read_refused;
  logic [5:0] register_write_number, register_read_number;
  logic [31:0] register_write_data, register_read_data;
  fsa_control_bus control_bus (
      .clock(clock), .reset(reset), .aw_valid(control_aw_valid), .aw_ready(control_aw_ready),
      .aw_address(control_aw_address), .w_valid(control_w_valid), .w_ready(control_w_ready),
      .w_data(control_w_data), .w_strobe(control_w_strobe), .b_valid(control_b_valid),
      .b_ready(control_b_ready), .b_resp(control_b_resp), .ar_valid(control_ar_valid),
      .ar_ready(control_ar_ready), .ar_address(control_ar_address), .r_valid(control_r_valid),
      .r_ready(control_r_ready), .r_data(control_r_data), .r_resp(control_r_resp),
      .write(register_write), .write_number(register_write_number),
      .write_data(register_write_data), .write_refused(register_write_refused),
      .read_number(register_read_number), .read_data(register_read_data),
      .read_refused(register_read_refused));

  logic push, flush, start, active, serial, stopped, engine_idle, words_quiet, ended;
  logic fetch_error, load_error, store_error, progress, enters, word_valid, word_ready;
  logic [1:0] state, interrupt_enable, interrupts;
  logic [3:0] wrong, error;
  logic [31:0] program_words, cycle, number, error_instruction, error_cycle, watchdog, room, word;
  logic [38:0] program_address;
  fsa_run run (
      .clock(clock), .reset(reset), .write(register_write), .write_number(register_write_number),
      .write_data(register_write_data), .write_refused(register_write_refused),
      .has_room(room != '0), .push(push), .program_address(program_address),
      .program_words(program_words), .flush(flush), .start(start), .active(active),
      .serial(serial), .stopped(stopped), .quiet(engine_idle && words_quiet), .wrong(wrong),
      .fetch_error(fetch_error), .load_error(load_error), .store_error(store_error),
      .ended(ended), .progress(progress), .cycle(cycle), .instruction(number), .state(state),
      .error(error), .error_instruction(error_instruction), .error_cycle(error_cycle),
      .watchdog(watchdog), .interrupt_enable(interrupt_enable), .interrupts(interrupts),
      .interrupt_request(interrupt_request));

  fsa_words words (
      .clock(clock), .reset(reset), .flush(flush), .push(push), .pushed(register_write_data),
      .room(room), .enters(enters), .fetch(start), .address(program_address),
      .count(program_words), .halt(stopped), .quiet(words_quiet), .ended(ended),
      .fetch_error(fetch_error), .word_valid(word_valid), .word_ready(decodes), .word(word),
      .ar_valid(fetch_ar_valid), .ar_ready(fetch_ar_ready), .ar_address(fetch_ar_address),
      .ar_length(fetch_ar_length), .r_valid(fetch_r_valid), .r_ready(fetch_r_ready),
      .r_data(fetch_r_data), .r_resp(fetch_r_resp));

  logic decodes_matrix, decodes_dma, decodes_fence, matrix_busy, dma_busy;
  logic wants_instruction, waits_array, waits_drain, waits_semaphore;
  assign runs = active && !stopped;
  assign decodes = active && word_valid && word_ready;
  assign progress = decodes || issues || matrix_busy || load_starts || load_finishes
                    || store_starts || store_finishes || |(r_valid & r_ready)
                    || |(w_valid & w_ready) || |(b_valid & b_ready)
                    || (fetch_r_valid && fetch_r_ready);
  fsa_counters counters (
      .clock(clock), .reset(reset), .start(start), .runs(runs), .busy(active),
      .pushes_word(enters), .takes_word(decodes), .decodes_matrix(decodes_matrix),
      .decodes_dma(decodes_dma), .decodes_fence(decodes_fence), .matrix_busy(matrix_busy),
      .dma_busy(dma_busy), .wants_instruction(wants_instruction), .waits_array(waits_array),
      .waits_drain(waits_drain), .waits_semaphore(waits_semaphore), .issues(issues),
      .load_starts(load_starts), .load_finishes(load_finishes), .store_starts(store_starts),
      .store_finishes(store_finishes), .state(state), .room(room), .serial(serial),
      .program_address(program_address), .program_words(program_words), .error(error),
      .error_instruction(error_instruction), .error_cycle(error_cycle), .watchdog(watchdog),
      .interrupt_enable(interrupt_enable), .interrupts(interrupts), .cycle(cycle),
      .read_number(register_read_number), .read_data(register_read_data),
      .read_refused(register_read_refused));

  fsa_engine engine (
      .clock(clock), .reset(reset || start), .word_valid(word_valid && active),
      .word_ready(word_ready), .word(word), .serial(serial), .stopped(stopped),
      .idle(engine_idle), .wrong(wrong), .number(number), .load_error(load_error),
      .store_error(store_error), .decodes_matrix(decodes_matrix), .decodes_dma(decodes_dma),
      .decodes_fence(decodes_fence), .matrix_busy(matrix_busy), .dma_busy(dma_busy),
      .wants_instruction(wants_instruction), .waits_array(waits_array),
      .waits_drain(waits_drain), .waits_semaphore(waits_semaphore), .ar_valid(ar_valid),
      .ar_ready(ar_ready), .ar_address(ar_address), .r_valid(r_valid), .r_ready(r_ready),
      .r_data(r_data), .r_resp(r_resp), .aw_valid(aw_valid), .aw_ready(aw_ready),
      .aw_address(aw_address), .w_valid(w_valid), .w_ready(w_ready), .w_data(w_data),
      .w_last(w_last), .b_valid(b_valid), .b_ready(b_ready), .b_resp(b_resp), .issues(issues),
      .load_starts(load_starts), .load_finishes(load_finishes), .store_starts(store_starts),
      .store_finishes(store_finishes), .elements(elements), .comparators(comparators),
      .scales(scales), .writes(writes), .write_row(write_row), .write_data(write_data));
endmodule
