// Accumulators below the columns of a block of processing elements; all work in the same cycle.
`include "fsa_config.sv"

module fsa_accumulator_row (
    input  logic                                         clock,
    input  logic                                         reset,
    input  logic                                         valid,
    input  logic [2:0]                                   command,
    input  logic [fsa_config::BLOCK_C*fsa_config::A-1:0] array_in,
    input  logic [fsa_config::BLOCK_C*fsa_config::A-1:0] sram_in,
    output logic [fsa_config::BLOCK_C*fsa_config::A-1:0] out,
    output logic [fsa_config::BLOCK_C*fsa_config::A-1:0] scales
);
  /* verilator hier_block */
  localparam int A = fsa_config::A;
  genvar c;
  generate
    for (c = 0; c < fsa_config::BLOCK_C; c = c + 1) begin : column
      fsa_accumulator accumulator (
          .clock(clock), .reset(reset), .valid(valid), .command(command),
          .array_in(array_in[c*A+:A]), .sram_in(sram_in[c*A+:A]), .out(out[c*A+:A]),
          .scale(scales[c*A+:A]));
    end
  endgenerate
endmodule
