// A queue: the head is there while it is not empty; a push becomes visible a cycle later.
module fsa_fifo #(
    parameter int WIDTH = 32,
    parameter int DEPTH = 8  // 2 or more
) (
    input  logic             clock,
    input  logic             reset,
    input  logic             push,   // not while full
    input  logic [WIDTH-1:0] in,
    input  logic             pop,    // not while empty
    output logic [WIDTH-1:0] head,
    output logic             empty,
    output logic             full
);
  localparam int B = $clog2(DEPTH);
  logic [WIDTH-1:0] entries[DEPTH];
  logic [B-1:0] first, last;  // to pop, to push
  logic [B:0] count;
  assign head = entries[first];
  assign empty = count == '0;
  assign full = count == (B + 1)'(DEPTH);
  always_ff @(posedge clock) begin
    if (push) entries[last] <= in;
    if (reset) begin
      first <= '0;
      last <= '0;
      count <= '0;
    end else begin
      if (push) last <= last == B'(DEPTH - 1) ? '0 : last + B'(1);
      if (pop) first <= first == B'(DEPTH - 1) ? '0 : first + B'(1);
      if (push && !pop) count <= count + (B + 1)'(1);
      if (pop && !push) count <= count - (B + 1)'(1);
    end
  end
endmodule
