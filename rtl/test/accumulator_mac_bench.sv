// The accumulator's arithmetic with the generated table of its linear pieces.
`include "fsa_config.sv"

module accumulator_mac_bench (
    input  logic [31:0] a,
    input  logic [31:0] b,
    input  logic [31:0] c,
    input  logic        exp2,
    output logic [31:0] out
);
  fsa_accumulator_mac #(
      .E(fsa_config::AE), .M(fsa_config::AM), .P(fsa_config::P),
      .SLOPES(fsa_config::SLOPES), .INTERCEPTS(fsa_config::INTERCEPTS)
  ) unit (.a(a), .b(b), .c(c), .exp2(exp2), .out(out));
endmodule
