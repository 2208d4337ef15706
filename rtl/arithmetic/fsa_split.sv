// x = whole + fraction with |fraction| < 1, both of x's sign, and the piece of exp2's piecewise
// linear approximation: floor(|fraction| * P). From |x| = 2^E on (NaN and infinity among them)
// there is no whole: `huge`, and the result of exp2 is zero.
//
// The fraction is not normalised: after the whole is cut off, its leading bits may be zero. A
// normaliser here would be a second one beside fsa_fma's.
module fsa_split #(
    parameter int E = 5,
    parameter int M = 10,
    parameter int P = 8,  // pieces, a power of two from 2 to 2^M
    localparam int L = $clog2(P)
) (
    input  logic                sign,
    input  logic signed [E:0]   exponent,
    input  logic        [M:0]   mantissa,
    output logic                huge,
    output logic signed [E:0]   whole,
    output logic        [L-1:0] piece,
    output logic signed [E:0]   fraction_exponent,
    output logic        [M:0]   fraction
);
  localparam int S = $clog2(E);          // bits of a shift by up to E - 1
  localparam int Q = $clog2(L + 1);      // bits of a shift by up to L
  localparam logic signed [E:0] kMost = (E + 1)'(E - 1);
  localparam logic signed [E:0] kPlaces = (E + 1)'(L);

  logic below_one;
  assign below_one = exponent < 0;
  assign huge = exponent > kMost;

  logic [E+M-1:0] shifted;
  logic signed [E:0] magnitude;
  assign shifted = {{(E - 1) {1'b0}}, mantissa} << exponent[S-1:0];
  assign magnitude = {1'b0, shifted[E+M-1:M]};
  always_comb begin
    if (below_one || huge) whole = '0;
    else whole = sign ? -magnitude : magnitude;
  end
  assign fraction_exponent = below_one || huge ? exponent : '0;
  assign fraction = below_one || huge ? mantissa : {1'b0, shifted[M-1:0]};

  logic signed [E:0] right;  // places from the first bit after the point
  logic [L-1:0] leading;
  assign right = -(E + 1)'(1) - exponent;
  assign leading = mantissa[M-:L] >> right[Q-1:0];
  always_comb begin
    if (huge) piece = '0;
    else if (!below_one) piece = shifted[M-1-:L];
    else piece = right < kPlaces ? leading : '0;
  end
endmodule
