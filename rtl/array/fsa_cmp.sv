// The comparator above a column: it keeps the running maximum of the column's scores on their way
// up, sends them back down as elements, then the maximum, its change, zeros and exp2's intercepts.
// Commands move right, one column a cycle.
//
// With COMPAT, as published, max(0, maximum) is kept for the maximum where it is sent down: what
// follows a row of negative scores is then wrong.
`include "fsa_config.sv"

module fsa_cmp (
    input  logic                                 clock,
    input  logic                                 reset,
    input  logic                                 valid_in,
    input  logic [2:0]                           command_in,
    input  logic [8:0]                           mask_in,  // not 0: the key is masked here
    input  logic [fsa_config::A-1:0]             up_in,  // row 0's sums
    output logic                                 valid,  // to the next column
    output logic [2:0]                           command,
    output logic [8:0]                           mask,
    output logic                                 down_valid,  // to row 0
    output logic [fsa_config::A-1:0]             down,
    output logic [fsa_config::A-1:0]             old_max,
    output logic [fsa_config::A-1:0]             new_max,
    output logic [fsa_config::PIECE_BITS-1:0]    piece
);
  localparam int A = fsa_config::A;
  localparam logic [A-1:0] kLeast = {1'b1, {fsa_config::AE{1'b1}},
                                     {fsa_config::AM{1'b0}}};  // minus infinity
  logic update, send_max, send_difference, send_zero, clear, send_intercept;
  assign update = command_in == 3'd0;
  assign send_max = command_in == 3'd1;
  assign send_difference = command_in == 3'd2;
  assign send_zero = command_in == 3'd3;
  assign clear = command_in == 3'd4;
  assign send_intercept = command_in == 3'd5;

  logic [A-1:0] score, operand, larger, difference;
  logic [fsa_config::E-1:0] score_element;
  assign score = mask_in != '0 ? kLeast : up_in;
  assign operand = update ? score : send_max ? '0 : old_max;
  fsa_compare #(.E(fsa_config::AE), .M(fsa_config::AM)) compare (
      .a(operand), .b(new_max), .maximum(larger), .difference(difference));
  fsa_narrow #(
      .AE(fsa_config::AE), .AM(fsa_config::AM), .EE(fsa_config::EE), .EM(fsa_config::EM)
  ) narrow_score (.wide(score), .narrow(score_element));

  logic [A-1:0] sent;
  always_comb begin
    if (send_zero) sent = '0;
    else if (send_intercept) sent = fsa_config::STREAMED_INTERCEPTS[piece*A+:A];
    else if (update) sent = A'(score_element);
    else sent = difference;
  end

  always_ff @(posedge clock) begin
    if (reset) begin
      valid <= 1'b0;
      command <= '0;
      mask <= '0;
      down_valid <= 1'b0;
      down <= '0;
      old_max <= kLeast;
      new_max <= kLeast;
      piece <= '0;
    end else begin
      valid <= valid_in;
      command <= command_in;
      mask <= mask_in == '0 ? '0 : mask_in - 9'd1;
      down_valid <= valid_in && !clear;
      if (valid_in && !clear) down <= sent;
      if (valid_in && clear) begin
        old_max <= kLeast;
        new_max <= kLeast;
      end else if (valid_in
                   && (update || (send_max && fsa_config::COMPAT) || send_difference)) begin
        new_max <= larger;
        if (send_difference) old_max <= larger;
      end
      if (valid_in && send_intercept) piece <= piece + 1'b1;
    end
  end
endmodule
