// The arithmetic of a processing element: a * b + c, rounded once to the accumulator's format and
// once to the element's, or 2^a by one linear piece.
//
// For exp2, b is a slope and c an intercept, which lies in (0.5, 1]: of its exponent only the last
// bit is needed, so the others carry the piece's number and are put back here. `hit` says that the
// piece on the wires is a's own. With other slopes and intercepts than these, which no program that
// keeps the constants' way through the input delayer free can bring here, the sum is not exact
// (fsa_fma) and its sign is lost: 2^a is positive.
module fsa_pe_mac #(
    parameter int EE = 5,   // element
    parameter int EM = 10,
    parameter int AE = 8,   // accumulator
    parameter int AM = 23,
    parameter int P = 8     // pieces
) (
    input  logic [EE+EM:0] a,
    input  logic [EE+EM:0] b,
    input  logic [AE+AM:0] c,
    input  logic           exp2,
    output logic [AE+AM:0] out,
    output logic [EE+EM:0] out_element,
    output logic           hit
);
  localparam int L = $clog2(P);
  localparam int X = AE + 3;  // sums of two exponents, a whole and a normalising shift

  logic a_nan, a_inf, a_zero, a_sign, b_nan, b_inf, b_zero, b_sign, c_nan, c_inf, c_zero, c_sign;
  logic signed [EE:0] a_exponent, b_exponent, fma_exponent, fraction_exponent, whole;
  logic [EM:0] a_mantissa, b_mantissa, fma_mantissa, fraction;
  logic signed [AE:0] c_exponent;
  logic [AM:0] c_mantissa;
  logic [AE+AM:0] addend;
  logic huge;
  logic [L-1:0] piece;

  assign addend = exp2 ? {c[AE+AM], 1'b0, {(AE - 2) {1'b1}}, c[AM:0]} : c;
  fsa_unpack #(.E(EE), .M(EM)) unpack_a (
      .word(a), .is_nan(a_nan), .is_inf(a_inf), .is_zero(a_zero), .sign(a_sign),
      .exponent(a_exponent), .mantissa(a_mantissa));
  fsa_unpack #(.E(EE), .M(EM)) unpack_b (
      .word(b), .is_nan(b_nan), .is_inf(b_inf), .is_zero(b_zero), .sign(b_sign),
      .exponent(b_exponent), .mantissa(b_mantissa));
  fsa_unpack #(.E(AE), .M(AM)) unpack_c (
      .word(addend), .is_nan(c_nan), .is_inf(c_inf), .is_zero(c_zero), .sign(c_sign),
      .exponent(c_exponent), .mantissa(c_mantissa));

  fsa_split #(.E(EE), .M(EM), .P(P)) split (
      .sign(a_sign), .exponent(a_exponent), .mantissa(a_mantissa), .huge(huge), .whole(whole),
      .piece(piece), .fraction_exponent(fraction_exponent), .fraction(fraction));
  assign fma_exponent = exp2 ? fraction_exponent : a_exponent;
  assign fma_mantissa = exp2 ? fraction : a_mantissa;
  assign hit = exp2 && c[AM+1+:L] == piece;

  logic sum_nan, sum_inf, sum_zero, sum_sign, is_inf, is_zero, sign;
  logic signed [X-1:0] sum_exponent, exponent;
  logic [AM+2:0] mantissa;
  fsa_fma #(.ME(EE), .MM(EM), .AE(AE), .AM(AM), .X(X)) fma (
      .a_nan(a_nan), .a_inf(a_inf), .a_sign(a_sign), .a_exponent(fma_exponent),
      .a_mantissa(fma_mantissa), .b_nan(b_nan), .b_inf(b_inf), .b_sign(b_sign),
      .b_exponent(b_exponent), .b_mantissa(b_mantissa), .c_nan(c_nan), .c_inf(c_inf),
      .c_sign(c_sign), .c_exponent(c_exponent), .c_mantissa(c_mantissa), .is_nan(sum_nan),
      .is_inf(sum_inf), .is_zero(sum_zero), .sign(sum_sign), .exponent(sum_exponent),
      .mantissa(mantissa));
  assign is_inf = !exp2 && sum_inf;
  assign is_zero = exp2 ? huge || sum_inf || sum_zero : sum_zero;
  assign sign = !exp2 && sum_sign;
  assign exponent = sum_exponent + (exp2 ? X'(whole) : '0);

  fsa_round #(.X(X), .I(AM + 3), .E(AE), .M(AM)) round (
      .is_nan(sum_nan), .is_inf(is_inf), .is_zero(is_zero), .sign(sign), .exponent(exponent),
      .mantissa(mantissa), .word(out));
  fsa_round #(.X(X), .I(AM + 3), .E(EE), .M(EM)) round_element (
      .is_nan(sum_nan), .is_inf(is_inf), .is_zero(is_zero), .sign(sign), .exponent(exponent),
      .mantissa(mantissa), .word(out_element));
  logic unused;
  assign unused = &{1'b0, a_zero, b_zero, c_zero};
endmodule
