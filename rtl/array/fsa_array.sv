// The comparators and R x C processing elements. Rows take their control and left words at column
// 0; comparators take theirs there too. A column's sums leave at the bottom.
`include "fsa_config.sv"

module fsa_array (
    input  logic                                        clock,
    input  logic                                        reset,
    input  logic [fsa_config::R*9-1:0]                  controls,
    input  logic [fsa_config::R*fsa_config::E-1:0]      lefts,
    input  logic                                        command_valid,
    input  logic [2:0]                                  command,
    input  logic [8:0]                                  mask,
    output logic [fsa_config::C*fsa_config::A-1:0]      sums,
    // All registers of an element (row after row) and of a comparator, fields from the last bits on
    // as they are concatenated below. Benches look at them; nothing in the engine does.
    output logic [fsa_config::R*fsa_config::C*fsa_config::PE_STATE-1:0] elements,
    output logic [fsa_config::C*fsa_config::CMP_STATE-1:0]              comparators
);
  localparam int R = fsa_config::R;
  localparam int C = fsa_config::C;
  localparam int W = fsa_config::E;
  localparam int A = fsa_config::A;
  localparam int PE_STATE = fsa_config::PE_STATE;
  localparam int CMP_STATE = fsa_config::CMP_STATE;

  genvar r, c;
  generate
    for (c = 0; c < C; c = c + 1) begin : top
      logic in_valid, out_valid, down_valid;
      logic [2:0] in_command, out_command;
      logic [8:0] in_mask, out_mask;
      logic [A-1:0] up_word, down, old_max, new_max;
      logic [fsa_config::PIECE_BITS-1:0] piece;
      if (c == 0) begin : first
        assign in_valid = command_valid;
        assign in_command = command;
        assign in_mask = mask;
      end else begin : next
        assign in_valid = top[c-1].out_valid;
        assign in_command = top[c-1].out_command;
        assign in_mask = top[c-1].out_mask;
      end
      assign up_word = row[0].column[c].up;
      fsa_cmp cmp (
          .clock(clock), .reset(reset), .valid_in(in_valid), .command_in(in_command),
          .mask_in(in_mask), .up_in(up_word), .valid(out_valid), .command(out_command),
          .mask(out_mask), .down_valid(down_valid), .down(down), .old_max(old_max),
          .new_max(new_max), .piece(piece));
      assign comparators[c*CMP_STATE+:CMP_STATE] =
          {piece, new_max, old_max, down, down_valid, out_mask, out_command, out_valid};
    end
    for (r = 0; r < R; r = r + 1) begin : row
      for (c = 0; c < C; c = c + 1) begin : column
        logic [8:0] control_in, control;
        logic [W-1:0] left_in, right, stationary;
        logic [A-1:0] up_in, down_in, down, up;
        logic right_valid, down_valid, up_valid, exp2_done;
        if (c == 0) begin : first
          assign control_in = controls[r*9+:9];
          assign left_in = lefts[r*W+:W];
        end else begin : next
          assign control_in = row[r].column[c-1].control;
          assign left_in = row[r].column[c-1].right;
        end
        if (r == 0) begin : highest
          assign up_in = top[c].down;
        end else begin : lower
          assign up_in = row[r-1].column[c].down;
        end
        if (r == R - 1) begin : lowest
          assign down_in = '0;
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
    end
    for (c = 0; c < C; c = c + 1) begin : bottom
      assign sums[c*A+:A] = row[R-1].column[c].down;
    end
  endgenerate
endmodule
