// 1 / x, correctly rounded, BITS quotient bits a cycle. `start` is taken while idle; x must hold
// until `done`, which comes LATENCY - 1 cycles after the cycle of the start and stands for one
// cycle.
module fsa_reciprocal #(
    parameter int E = 8,
    parameter int M = 23,
    parameter int BITS = 2
) (
    input  logic         clock,
    input  logic         reset,
    input  logic         start,
    input  logic [E+M:0] x,
    output logic         done,
    output logic [E+M:0] quotient
);
  // The quotient of two mantissas lies in (1/2, 1]: M + 3 bits hold a whole one, M fraction bits
  // after a leading 1/2, and the half that rounding asks for.
  localparam int STEPS = (M + 3 + BITS - 1) / BITS;
  localparam int N = STEPS * BITS;
  localparam int C = $clog2(STEPS + 2);

  logic is_nan, is_inf, is_zero, sign;
  logic signed [E:0] exponent;
  logic [M:0] divisor;
  fsa_unpack #(.E(E), .M(M)) unpack (
      .word(x), .is_nan(is_nan), .is_inf(is_inf), .is_zero(is_zero), .sign(sign),
      .exponent(exponent), .mantissa(divisor));

  logic [C-1:0] step;  // 0 idle, 1 to STEPS dividing, STEPS + 1 done
  logic [N-1:0] bits, next_bits;
  logic [M+1:0] remainder, next_remainder;
  logic fits;
  always_comb begin
    next_bits = bits;
    next_remainder = remainder;
    fits = 1'b0;
    for (int k = 0; k < BITS; k = k + 1) begin
      fits = next_remainder >= {1'b0, divisor};
      if (fits) next_remainder = next_remainder - {1'b0, divisor};
      next_remainder = next_remainder << 1;
      next_bits = {next_bits[N-2:0], fits};
    end
  end
  always_ff @(posedge clock) begin
    if (reset) begin
      step <= '0;
      bits <= '0;
      remainder <= '0;
    end else if (step == '0) begin
      if (start) begin
        step <= C'(1);
        bits <= '0;
        remainder <= {2'b01, {M{1'b0}}};
      end
    end else begin
      step <= done ? '0 : step + C'(1);
      if (!done) begin
        bits <= next_bits;
        remainder <= next_remainder;
      end
    end
  end
  assign done = step == C'(STEPS + 1);

  logic whole;  // only for a power of two
  logic [N-1:0] normal;
  assign whole = bits[N-1];
  assign normal = whole ? bits : bits << 1;
  fsa_round #(.X(E + 2), .I(N + 1), .E(E), .M(M)) round (
      .is_nan(is_nan), .is_inf(is_zero), .is_zero(is_inf), .sign(sign),
      .exponent(-{exponent[E], exponent} - {{(E + 1) {1'b0}}, !whole}),
      .mantissa({normal, |remainder}), .word(quotient));
endmodule
