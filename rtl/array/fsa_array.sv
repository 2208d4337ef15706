// The comparators and R x C processing elements, in blocks of BLOCK_R x BLOCK_C. Rows take their
// control and left words at column 0; comparators take theirs there too. A column's sums leave at
// the bottom.
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
    // All registers of an element (block after block, in each row after row) and of a comparator,
    // fields from the last bits on as fsa_pe_block and fsa_cmp_row concatenate them. Benches look
    // at them; nothing in the engine does.
    output logic [fsa_config::R*fsa_config::C*fsa_config::PE_STATE-1:0] elements,
    output logic [fsa_config::C*fsa_config::CMP_STATE-1:0]              comparators
);
  localparam int R = fsa_config::BLOCK_R;
  localparam int C = fsa_config::BLOCK_C;
  localparam int W = fsa_config::E;
  localparam int A = fsa_config::A;
  localparam int STATE = R * C * fsa_config::PE_STATE;
  localparam int CMP_STATE = C * fsa_config::CMP_STATE;
  localparam int DOWN = fsa_config::R / R;    // blocks
  localparam int RIGHT = fsa_config::C / C;

  genvar i, j;
  generate
    for (j = 0; j < RIGHT; j = j + 1) begin : top
      logic in_valid, out_valid;
      logic [2:0] in_command, out_command;
      logic [8:0] in_mask, out_mask;
      logic [C*A-1:0] downs;
      if (j == 0) begin : first
        assign in_valid = command_valid;
        assign in_command = command;
        assign in_mask = mask;
      end else begin : next
        assign in_valid = top[j-1].out_valid;
        assign in_command = top[j-1].out_command;
        assign in_mask = top[j-1].out_mask;
      end
      if (j == RIGHT - 1) begin : last
        logic unused;
        assign unused = &{1'b0, out_valid, out_command, out_mask};
      end
      fsa_cmp_row compare (
          .clock(clock), .reset(reset), .valid_in(in_valid), .command_in(in_command),
          .mask_in(in_mask), .valid(out_valid), .command(out_command), .mask(out_mask),
          .ups_in(row[0].column[j].ups), .downs(downs),
          .comparators(comparators[j*CMP_STATE+:CMP_STATE]));
    end
    for (i = 0; i < DOWN; i = i + 1) begin : row
      for (j = 0; j < RIGHT; j = j + 1) begin : column
        logic [R*9-1:0] controls_in, controls_out;
        logic [R*W-1:0] lefts_in, rights;
        logic [C*A-1:0] ups_in, downs_in, downs, ups;
        if (j == 0) begin : first
          assign controls_in = controls[i*R*9+:R*9];
          assign lefts_in = lefts[i*R*W+:R*W];
        end else begin : next
          assign controls_in = row[i].column[j-1].controls_out;
          assign lefts_in = row[i].column[j-1].rights;
        end
        if (i == 0) begin : highest
          assign ups_in = top[j].downs;
        end else begin : lower
          assign ups_in = row[i-1].column[j].downs;
        end
        if (i == DOWN - 1) begin : lowest
          assign downs_in = '0;
        end else begin : higher
          assign downs_in = row[i+1].column[j].ups;
        end
        if (j == RIGHT - 1) begin : last
          logic unused;
          assign unused = &{1'b0, controls_out, rights};
        end
        fsa_pe_block block (
            .clock(clock), .reset(reset), .controls_in(controls_in), .lefts_in(lefts_in),
            .controls(controls_out), .rights(rights), .ups_in(ups_in), .downs(downs),
            .downs_in(downs_in), .ups(ups), .elements(elements[(i*RIGHT+j)*STATE+:STATE]));
      end
    end
    for (j = 0; j < RIGHT; j = j + 1) begin : bottom
      assign sums[j*C*A+:C*A] = row[DOWN-1].column[j].downs;
    end
  endgenerate
endmodule
