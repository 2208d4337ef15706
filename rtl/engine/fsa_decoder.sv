// A word a cycle, in order: the last word of an instruction waits for room in its queue, a fence
// for the engines that it names. A word that is no part of an instruction is never taken; `wrong`
// says why (fsa_config::ERROR_…).
`include "fsa_config.sv"

module fsa_decoder (
    input  logic         clock,
    input  logic         reset,
    input  logic         word_valid,
    output logic         word_ready,
    input  logic [31:0]  word,
    input  logic         matrix_room,
    input  logic         load_room,
    input  logic         store_room,
    input  logic         matrix_idle,   // its queue too
    input  logic         dma_idle,
    output logic         push_matrix,
    output logic         push_load,
    output logic         push_store,
    output logic         passes_fence,
    output logic [127:0] instruction,   // header in the last bits
    output logic [31:0]  number,        // of the instruction that is being decoded
    output logic         stopped,       // by a fence
    output logic [3:0]   wrong          // of the word that is there
);
  logic [95:0] taken;  // words before this one
  logic [1:0] count;   // of them
  logic [31:0] header;
  logic [2:0] kind;
  logic [4:0] function_code;
  logic is_fence, is_matrix, is_dma, is_store, complete, may_end;
  assign header = count == 2'd0 ? word : taken[31:0];
  assign kind = header[31:29];
  assign is_fence = kind == 3'(fsa_config::KIND_FENCE);
  assign is_matrix = kind == 3'(fsa_config::KIND_MATRIX);
  assign is_dma = kind == 3'(fsa_config::KIND_DMA);
  assign is_store = header[fsa_config::F_DMA_FUNCTION_HIGH:fsa_config::F_DMA_FUNCTION_LOW]
                    == 4'(fsa_config::DMA_STORE);
  always_comb begin
    case (count)
      2'd0: instruction = {96'b0, word};
      2'd1: instruction = {64'b0, word, taken[31:0]};
      2'd2: instruction = {32'b0, word, taken[63:0]};
      default: instruction = {word, taken};
    endcase
    complete = is_fence || (is_matrix && count == 2'(fsa_config::WORDS_MATRIX - 1))
               || (is_dma && count == 2'(fsa_config::WORDS_DMA - 1));
    may_end = 1'b0;
    if (is_fence) begin
      may_end = (matrix_idle || !header[fsa_config::F_FENCE_MATRIX_LOW])
                && (dma_idle || !header[fsa_config::F_FENCE_DMA_LOW]);
    end else if (is_matrix) may_end = matrix_room;
    else if (is_dma) may_end = is_store ? store_room : load_room;
  end

  // Bits that belong to no field of the word must be zero.
  logic [31:0] fields;
  logic has_limit, function_known;
  assign function_code =
      header[fsa_config::F_MATRIX_FUNCTION_HIGH:fsa_config::F_MATRIX_FUNCTION_LOW];
  assign has_limit = function_code == 5'(fsa_config::FUNCTION_SCORE_LIMIT);
  assign function_known =
      is_matrix ? function_code < 5'(fsa_config::FUNCTIONS)
                : header[fsa_config::F_DMA_FUNCTION_HIGH:fsa_config::F_DMA_FUNCTION_LOW]
                  <= 4'(fsa_config::DMA_STORE);
  always_comb begin
    if (is_fence) fields = fsa_config::FIELDS_FENCE;
    else if (is_matrix) begin
      fields = fsa_config::FIELDS_MATRIX[{count, 5'd0}+:32];
      if (has_limit) fields = fields | fsa_config::FIELDS_LIMIT[{count, 5'd0}+:32];
    end else fields = fsa_config::FIELDS_DMA[{count, 5'd0}+:32];
    wrong = '0;
    if (word_valid && !stopped) begin
      if (!is_fence && !is_matrix && !is_dma) wrong = 4'(fsa_config::ERROR_KIND);
      else if (!is_fence && !function_known) wrong = 4'(fsa_config::ERROR_FUNCTION);
      else if ((word & ~fields) != '0) wrong = 4'(fsa_config::ERROR_RESERVED);
    end
  end

  assign word_ready = !stopped && wrong == '0 && (!complete || may_end);
  logic ends;
  assign ends = word_valid && word_ready && complete;
  assign push_matrix = ends && is_matrix;
  assign push_load = ends && is_dma && !is_store;
  assign push_store = ends && is_dma && is_store;
  assign passes_fence = ends && is_fence;
  always_ff @(posedge clock) begin
    if (reset) begin
      taken <= '0;
      count <= '0;
      number <= '0;
      stopped <= 1'b0;
    end else begin
      if (word_valid && word_ready) begin
        count <= complete ? 2'd0 : count + 2'd1;
        if (count == 2'd0) taken[31:0] <= word;
        if (count == 2'd1) taken[63:32] <= word;
        if (count == 2'd2) taken[95:64] <= word;
      end
      if (ends) number <= number + 32'd1;
      if (passes_fence && header[fsa_config::F_FENCE_STOP_LOW]) stopped <= 1'b1;
    end
  end
endmodule
