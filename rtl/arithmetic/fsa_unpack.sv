// A floating-point word into flags, exponent and mantissa. Subnormals are read as signed zero: the
// array has no gradual underflow on either side of its units.
module fsa_unpack #(
    parameter int E = 8,  // exponent bits
    parameter int M = 23  // stored mantissa bits
) (
    input  logic        [E+M:0] word,
    output logic                is_nan,
    output logic                is_inf,
    output logic                is_zero,
    output logic                sign,
    output logic signed [E:0]   exponent,  // unbiased
    output logic        [M:0]   mantissa   // with its hidden bit; 0 where the word is zero
);
  localparam logic [E:0] kBias = (1 << (E - 1)) - 1;
  logic [E-1:0] biased;
  logic [M-1:0] stored;
  logic         top;  // exponent of infinities and NaNs

  assign {sign, biased, stored} = word;
  assign top = &biased;
  assign is_zero = ~|biased;
  assign is_inf = top && ~|stored;
  assign is_nan = top && |stored;
  assign exponent = $signed({1'b0, biased}) - $signed(kBias);
  assign mantissa = is_zero ? '0 : {1'b1, stored};
endmodule
