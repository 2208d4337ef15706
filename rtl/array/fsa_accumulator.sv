// The accumulator below a column: scale * SRAM + what the array sends, and the scale itself, which
// exp2, a load and a division make.
module fsa_accumulator #(
    parameter int E = 8,
    parameter int M = 23,
    parameter int P = 8,
    parameter logic [P*(1+E+M)-1:0] SLOPES = '0,
    parameter logic [P*(1+E+M)-1:0] INTERCEPTS = '0,
    parameter logic [E+M:0] SCALE = '0,  // log2(e) / sqrt(head dim)
    parameter int BITS = 2               // of a quotient, a cycle
) (
    input  logic         clock,
    input  logic         reset,
    input  logic         valid,
    input  logic [2:0]   command,
    input  logic [E+M:0] array_in,
    input  logic [E+M:0] sram_in,
    output logic [E+M:0] out,
    output logic [E+M:0] scale
);
  logic first, second, add_array, set, divide;
  assign first = command == 3'd0;   // EXP_S1
  assign second = command == 3'd1;  // EXP_S2
  assign add_array = command == 3'd2;
  assign set = command == 3'd4;
  assign divide = command == 3'd5;

  fsa_accumulator_mac #(.E(E), .M(M), .P(P), .SLOPES(SLOPES), .INTERCEPTS(INTERCEPTS)) mac (
      .a(first ? array_in : scale), .b(first ? SCALE : sram_in), .c(add_array ? array_in : '0),
      .exp2(second), .out(out));
  logic done;
  logic [E+M:0] quotient;
  fsa_reciprocal #(.E(E), .M(M), .BITS(BITS)) reciprocal (
      .clock(clock), .reset(reset), .start(valid && divide), .x(scale), .done(done),
      .quotient(quotient));

  always_ff @(posedge clock) begin
    if (reset) scale <= '0;
    else if (valid && done) scale <= quotient;
    else if (valid && (first || second)) scale <= out;
    else if (valid && set) scale <= sram_in;
  end
endmodule
