// A processing element. Its stationary word is multiplied by what comes from the left and added to
// what comes from above (acc_ui) or from below; the sum goes on that way, or back into the word.
// For exp2 the word is the argument, the left carries slopes, the top intercepts.
//
// Data are read whether valid or not, and links hold them while nothing valid is sent.
`include "fsa_config.sv"

module fsa_pe (
    input  logic                        clock,
    input  logic                        reset,
    input  logic [8:0]                  control_in,  // the plan's bits; a column a cycle
    input  logic [fsa_config::E-1:0]    left_in,
    input  logic [fsa_config::A-1:0]    up_in,  // from above
    input  logic [fsa_config::A-1:0]    down_in,  // from below
    output logic [8:0]                  control,
    output logic                        right_valid,
    output logic [fsa_config::E-1:0]    right,
    output logic                        down_valid,  // to below
    output logic [fsa_config::A-1:0]    down,
    output logic                        up_valid,  // to above
    output logic [fsa_config::A-1:0]    up,
    output logic [fsa_config::E-1:0]    stationary,
    output logic                        exp2_done  // of pieces, the first hit counts
);
  /* verilator no_inline_module */
  logic mac, acc_ui, load_reg_li, load_reg_ui, flow_lr, flow_ud, flow_du, update_reg, exp2;
  assign {exp2, update_reg, flow_du, flow_ud, flow_lr, load_reg_ui, load_reg_li, acc_ui, mac} =
      control_in;

  logic hit;
  logic [fsa_config::A-1:0] sum;
  logic [fsa_config::E-1:0] sum_element;
  fsa_pe_mac #(
      .EE(fsa_config::EE), .EM(fsa_config::EM), .AE(fsa_config::AE), .AM(fsa_config::AM),
      .P(fsa_config::P)
  ) arithmetic (
      .a(stationary), .b(left_in), .c(acc_ui ? up_in : down_in), .exp2(exp2), .out(sum),
      .out_element(sum_element), .hit(hit));

  logic sum_down, sum_up;
  assign sum_down = mac && acc_ui;
  assign sum_up = mac && !acc_ui;

  always_ff @(posedge clock) begin
    if (reset) begin
      control <= '0;
      right_valid <= 1'b0;
      right <= '0;
      down_valid <= 1'b0;
      down <= '0;
      up_valid <= 1'b0;
      up <= '0;
      stationary <= '0;
      exp2_done <= 1'b0;
    end else begin
      control <= control_in;
      right_valid <= load_reg_li || flow_lr;
      if (load_reg_li || flow_lr) right <= load_reg_li ? stationary : left_in;
      down_valid <= sum_down || flow_ud;
      if (sum_down || flow_ud) down <= sum_down ? sum : up_in;
      up_valid <= sum_up || flow_du;
      if (sum_up || flow_du) up <= sum_up ? sum : down_in;
      if (load_reg_li) stationary <= left_in;
      else if (load_reg_ui) stationary <= up_in[fsa_config::E-1:0];
      else if (update_reg || (hit && !exp2_done)) stationary <= sum_element;
      exp2_done <= exp2 && (exp2_done || hit);
    end
  end
endmodule
