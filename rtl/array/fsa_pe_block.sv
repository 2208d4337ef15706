// A block of processing elements with registers at all its borders. Verilator compiles one block
// once, where it is told to (--hierarchical); elsewhere the block is nothing but its elements.
`include "fsa_config.sv"

module fsa_pe_block (
    input  logic                                                 clock,
    input  logic                                                 reset,
    // A row's control and left word at its first column, and behind its last one.
    input  logic [fsa_config::BLOCK_R*9-1:0]                     controls_in,
    input  logic [fsa_config::BLOCK_R*fsa_config::E-1:0]         lefts_in,
    output logic [fsa_config::BLOCK_R*9-1:0]                     controls,
    output logic [fsa_config::BLOCK_R*fsa_config::E-1:0]         rights,
    // A column's sums from above and to below, from below and to above.
    input  logic [fsa_config::BLOCK_C*fsa_config::A-1:0]         ups_in,
    output logic [fsa_config::BLOCK_C*fsa_config::A-1:0]         downs,
    input  logic [fsa_config::BLOCK_C*fsa_config::A-1:0]         downs_in,
    output logic [fsa_config::BLOCK_C*fsa_config::A-1:0]         ups,
    output logic [fsa_config::BLOCK_R*fsa_config::BLOCK_C*fsa_config::PE_STATE-1:0] elements
);
  /* verilator hier_block */
  localparam int R = fsa_config::BLOCK_R;
  localparam int C = fsa_config::BLOCK_C;
  localparam int W = fsa_config::E;
  localparam int A = fsa_config::A;
  localparam int PE_STATE = fsa_config::PE_STATE;

  genvar r, c;
  generate
    for (r = 0; r < R; r = r + 1) begin : row
      for (c = 0; c < C; c = c + 1) begin : column
        logic [8:0] control_in, control;
        logic [W-1:0] left_in, right, stationary;
        logic [A-1:0] up_in, down_in, down, up;
        logic right_valid, down_valid, up_valid, exp2_done;
        if (c == 0) begin : first
          assign control_in = controls_in[r*9+:9];
          assign left_in = lefts_in[r*W+:W];
        end else begin : next
          assign control_in = row[r].column[c-1].control;
          assign left_in = row[r].column[c-1].right;
        end
        if (r == 0) begin : highest
          assign up_in = ups_in[c*A+:A];
        end else begin : lower
          assign up_in = row[r-1].column[c].down;
        end
        if (r == R - 1) begin : lowest
          assign down_in = downs_in[c*A+:A];
        end else begin : higher
          assign down_in = row[r+1].column[c].up;
        end
        fsa_pe pe (
            .clock(clock), .reset(reset), .control_in(control_in), .left_in(left_in),
            .up_in(up_in), .down_in(down_in), .control(control), .right_valid(right_valid),
            .right(right), .down_valid(down_valid), .down(down), .up_valid(up_valid), .up(up),
            .stationary(stationary), .exp2_done(exp2_done));
        assign elements[(r*C+c)*PE_STATE+:PE_STATE] =
            {exp2_done, stationary, up, up_valid, down, down_valid, right, right_valid, control};
      end
      assign controls[r*9+:9] = row[r].column[C-1].control;
      assign rights[r*W+:W] = row[r].column[C-1].right;
    end
    for (c = 0; c < C; c = c + 1) begin : border
      assign downs[c*A+:A] = row[R-1].column[c].down;
      assign ups[c*A+:A] = row[0].column[c].up;
    end
  endgenerate
endmodule
