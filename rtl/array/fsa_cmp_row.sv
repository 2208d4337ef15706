// Comparators above the columns of a block of processing elements; commands move on behind the
// last one.
`include "fsa_config.sv"

module fsa_cmp_row (
    input  logic                                           clock,
    input  logic                                           reset,
    input  logic                                           valid_in,
    input  logic [2:0]                                     command_in,
    input  logic [8:0]                                     mask_in,
    output logic                                           valid,
    output logic [2:0]                                     command,
    output logic [8:0]                                     mask,
    input  logic [fsa_config::BLOCK_C*fsa_config::A-1:0]   ups_in,  // row 0's sums
    output logic [fsa_config::BLOCK_C*fsa_config::A-1:0]   downs,
    output logic [fsa_config::BLOCK_C*fsa_config::CMP_STATE-1:0] comparators
);
  /* verilator hier_block */
  localparam int C = fsa_config::BLOCK_C;
  localparam int A = fsa_config::A;
  localparam int CMP_STATE = fsa_config::CMP_STATE;

  genvar c;
  generate
    for (c = 0; c < C; c = c + 1) begin : column
      logic from_valid, to_valid, down_valid;
      logic [2:0] from_command, to_command;
      logic [8:0] from_mask, to_mask;
      logic [A-1:0] down, old_max, new_max;
      logic [fsa_config::PIECE_BITS-1:0] piece;
      if (c == 0) begin : first
        assign from_valid = valid_in;
        assign from_command = command_in;
        assign from_mask = mask_in;
      end else begin : next
        assign from_valid = column[c-1].to_valid;
        assign from_command = column[c-1].to_command;
        assign from_mask = column[c-1].to_mask;
      end
      fsa_cmp cmp (
          .clock(clock), .reset(reset), .valid_in(from_valid), .command_in(from_command),
          .mask_in(from_mask), .up_in(ups_in[c*A+:A]), .valid(to_valid), .command(to_command),
          .mask(to_mask), .down_valid(down_valid), .down(down), .old_max(old_max),
          .new_max(new_max), .piece(piece));
      assign downs[c*A+:A] = down;
      assign comparators[c*CMP_STATE+:CMP_STATE] =
          {piece, new_max, old_max, down, down_valid, to_mask, to_command, to_valid};
    end
  endgenerate
  assign valid = column[C-1].to_valid;
  assign command = column[C-1].to_command;
  assign mask = column[C-1].to_mask;
endmodule
