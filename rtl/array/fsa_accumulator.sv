// The accumulator below a column: scale * SRAM + what the array sends, and the scale itself, which
// exp2, a load and a division make.
`include "fsa_config.sv"

module fsa_accumulator (
    input  logic                        clock,
    input  logic                        reset,
    input  logic                        valid,
    input  logic [2:0]                  command,
    input  logic [fsa_config::A-1:0]    array_in,
    input  logic [fsa_config::A-1:0]    sram_in,
    output logic [fsa_config::A-1:0]    out,
    output logic [fsa_config::A-1:0]    scale
);
  logic first, second, add_array, set, divide;
  assign first = command == 3'd0;   // EXP_S1
  assign second = command == 3'd1;  // EXP_S2
  assign add_array = command == 3'd2;
  assign set = command == 3'd4;
  assign divide = command == 3'd5;

  fsa_accumulator_mac #(
      .E(fsa_config::AE), .M(fsa_config::AM), .P(fsa_config::P), .SLOPES(fsa_config::SLOPES),
      .INTERCEPTS(fsa_config::INTERCEPTS)
  ) mac (
      .a(first ? array_in : scale), .b(first ? fsa_config::SCALE : sram_in),
      .c(add_array ? array_in : '0), .exp2(second), .out(out));
  logic done;
  logic [fsa_config::A-1:0] quotient;
  fsa_reciprocal #(
      .E(fsa_config::AE), .M(fsa_config::AM), .BITS(fsa_config::QUOTIENT_BITS)
  ) reciprocal (
      .clock(clock), .reset(reset), .start(valid && divide), .x(scale), .done(done),
      .quotient(quotient));

  always_ff @(posedge clock) begin
    if (reset) scale <= '0;
    else if (valid && done) scale <= quotient;
    else if (valid && (first || second)) scale <= out;
    else if (valid && set) scale <= sram_in;
  end
endmodule
