// What happened in a run, counted in cycles or occurrences, and the value of every register that
// can be read.
`include "fsa_config.sv"

module fsa_counters (
    input  logic        clock,
    input  logic        reset,
    input  logic        start,         // counters of a run begin at zero
    input  logic        runs,          // the program has not yet stopped
    input  logic        busy,          // the run is not yet over
    // Occurrences and states of this cycle.
    input  logic        pushes_word,
    input  logic        takes_word,
    input  logic        decodes_matrix,
    input  logic        decodes_dma,
    input  logic        decodes_fence,
    input  logic        matrix_busy,
    input  logic        dma_busy,
    input  logic        wants_instruction,
    input  logic        waits_array,
    input  logic        waits_drain,
    input  logic        waits_semaphore,
    input  logic        issues,
    input  logic        load_starts,
    input  logic        load_finishes,
    input  logic        store_starts,
    input  logic        store_finishes,
    // Registers of others.
    input  logic [1:0]  state,
    input  logic [31:0] room,
    input  logic        serial,
    input  logic [38:0] program_address,
    input  logic [31:0] program_words,
    input  logic [3:0]  error,
    input  logic [31:0] error_instruction,
    input  logic [31:0] error_cycle,
    input  logic [31:0] watchdog,
    input  logic [1:0]  interrupt_enable,
    input  logic [1:0]  interrupts,
    output logic [31:0] cycle,         // of the run
    input  logic [5:0]  read_number,
    output logic [31:0] read_data,
    output logic        read_refused
);
  // Words that came and went since the reset: the host can count on them over several runs.
  logic [31:0] words_in, words_out;
  always_ff @(posedge clock) begin
    if (reset) begin
      words_in <= '0;
      words_out <= '0;
    end else begin
      words_in <= words_in + 32'(pushes_word);
      words_out <= words_out + 32'(takes_word);
    end
  end

  localparam int N = 16;
  logic [N-1:0] happens;
  assign happens = {
      busy && store_finishes, busy && store_starts, busy && load_finishes, busy && load_starts,
      busy && issues, runs && waits_semaphore, runs && waits_drain, runs && waits_array,
      busy && dma_busy, busy && matrix_busy, runs && wants_instruction, decodes_fence,
      decodes_dma, decodes_matrix, takes_word, runs};
  logic [N*32-1:0] counts;
  genvar i;
  generate
    for (i = 0; i < N; i = i + 1) begin : counter
      always_ff @(posedge clock) begin
        if (reset || start) counts[i*32+:32] <= '0;
        else counts[i*32+:32] <= counts[i*32+:32] + 32'(happens[i]);
      end
    end
  endgenerate
  assign cycle = counts[31:0];

  always_comb begin
    read_refused = 1'b0;
    case (read_number)
      6'(fsa_config::REGISTER_STATE): read_data = 32'(state);
      6'(fsa_config::REGISTER_CYCLES): read_data = cycle;
      6'(fsa_config::REGISTER_WAITS_INSTRUCTION): read_data = counts[5*32+:32];
      6'(fsa_config::REGISTER_MATRIX_ACTIVE): read_data = counts[6*32+:32];
      6'(fsa_config::REGISTER_DMA_ACTIVE): read_data = counts[7*32+:32];
      6'(fsa_config::REGISTER_WORDS): read_data = counts[1*32+:32];
      6'(fsa_config::REGISTER_MATRIX_INSTRUCTIONS): read_data = counts[2*32+:32];
      6'(fsa_config::REGISTER_DMA_INSTRUCTIONS): read_data = counts[3*32+:32];
      6'(fsa_config::REGISTER_FENCES): read_data = counts[4*32+:32];
      6'(fsa_config::REGISTER_WORDS_IN): read_data = words_in;
      6'(fsa_config::REGISTER_WORDS_OUT): read_data = words_out;
      6'(fsa_config::REGISTER_ROOM): read_data = room;
      6'(fsa_config::REGISTER_MODE): read_data = 32'(serial);
      6'(fsa_config::REGISTER_PROGRAM_LOW): read_data = program_address[31:0];
      6'(fsa_config::REGISTER_PROGRAM_HIGH): read_data = 32'(program_address[38:32]);
      6'(fsa_config::REGISTER_PROGRAM_WORDS): read_data = program_words;
      6'(fsa_config::REGISTER_ERROR): read_data = 32'(error);
      6'(fsa_config::REGISTER_ERROR_INSTRUCTION): read_data = error_instruction;
      6'(fsa_config::REGISTER_ERROR_CYCLE): read_data = error_cycle;
      6'(fsa_config::REGISTER_WATCHDOG): read_data = watchdog;
      6'(fsa_config::REGISTER_INTERRUPT_ENABLE): read_data = 32'(interrupt_enable);
      6'(fsa_config::REGISTER_INTERRUPT): read_data = 32'(interrupts);
      6'(fsa_config::REGISTER_WAITS_ARRAY): read_data = counts[8*32+:32];
      6'(fsa_config::REGISTER_WAITS_DRAIN): read_data = counts[9*32+:32];
      6'(fsa_config::REGISTER_WAITS_SEMAPHORE): read_data = counts[10*32+:32];
      6'(fsa_config::REGISTER_ISSUED): read_data = counts[11*32+:32];
      6'(fsa_config::REGISTER_LOADS_STARTED): read_data = counts[12*32+:32];
      6'(fsa_config::REGISTER_LOADS_FINISHED): read_data = counts[13*32+:32];
      6'(fsa_config::REGISTER_STORES_STARTED): read_data = counts[14*32+:32];
      6'(fsa_config::REGISTER_STORES_FINISHED): read_data = counts[15*32+:32];
      6'(fsa_config::REGISTER_SHAPE): read_data = {16'(fsa_config::R), 16'(fsa_config::C)};
      default: begin
        read_data = '0;
        read_refused = 1'b1;
      end
    endcase
  end
endmodule
