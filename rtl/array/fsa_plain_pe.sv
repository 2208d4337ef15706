// The processing element of a plain weight-stationary array, to compare fsa_pe's area with: the
// stationary word is loaded from the left, sums go down. No part of the engine.
`include "fsa_config.sv"

module fsa_plain_pe (
    input  logic                        clock,
    input  logic                        reset,
    input  logic [1:0]                  control_in,  // load, multiply
    input  logic [fsa_config::E-1:0]    left_in,
    input  logic [fsa_config::A-1:0]    up_in,
    output logic [1:0]                  control,
    output logic                        right_valid,
    output logic [fsa_config::E-1:0]    right,
    output logic                        down_valid,
    output logic [fsa_config::A-1:0]    down,
    output logic [fsa_config::E-1:0]    stationary
);
  logic load, mac;
  assign {mac, load} = control_in;
  logic [fsa_config::A-1:0] sum;
  fsa_plain_mac #(
      .EE(fsa_config::EE), .EM(fsa_config::EM), .AE(fsa_config::AE), .AM(fsa_config::AM)
  ) arithmetic (
      .a(stationary), .b(left_in), .c(up_in), .out(sum));
  always_ff @(posedge clock) begin
    if (reset) begin
      control <= '0;
      right_valid <= 1'b0;
      right <= '0;
      down_valid <= 1'b0;
      down <= '0;
      stationary <= '0;
    end else begin
      control <= control_in;
      right_valid <= load || mac;
      if (load || mac) right <= load ? stationary : left_in;
      down_valid <= mac;
      if (mac) down <= sum;
      if (load) stationary <= left_in;
    end
  end
endmodule
