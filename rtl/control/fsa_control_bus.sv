// AXI4-Lite to reads and writes of 32-bit registers, one of each a cycle. What the registers
// refuse, and a write of less than a word, is answered SLVERR and changes nothing.
module fsa_control_bus (
    input  logic        clock,
    input  logic        reset,
    input  logic        aw_valid,
    output logic        aw_ready,
    input  logic [7:0]  aw_address,
    input  logic        w_valid,
    output logic        w_ready,
    input  logic [31:0] w_data,
    input  logic [3:0]  w_strobe,
    output logic        b_valid,
    input  logic        b_ready,
    output logic [1:0]  b_resp,
    input  logic        ar_valid,
    output logic        ar_ready,
    input  logic [7:0]  ar_address,
    output logic        r_valid,
    input  logic        r_ready,
    output logic [31:0] r_data,
    output logic [1:0]  r_resp,
    // The registers; a number is an address in words.
    output logic        write,
    output logic [5:0]  write_number,
    output logic [31:0] write_data,
    input  logic        write_refused,
    output logic [5:0]  read_number,
    input  logic [31:0] read_data,
    input  logic        read_refused
);
  localparam logic [1:0] kSlaveError = 2'b10;
  logic takes_write, whole, takes_read;
  assign takes_write = aw_valid && w_valid && (!b_valid || b_ready);
  assign aw_ready = takes_write;
  assign w_ready = takes_write;
  assign whole = &w_strobe && aw_address[1:0] == '0;
  assign write = takes_write && whole;
  assign write_number = aw_address[7:2];
  assign write_data = w_data;
  assign ar_ready = !r_valid || r_ready;
  assign takes_read = ar_valid && ar_ready;
  assign read_number = ar_address[7:2];
  always_ff @(posedge clock) begin
    if (reset) begin
      b_valid <= 1'b0;
      b_resp <= '0;
      r_valid <= 1'b0;
      r_data <= '0;
      r_resp <= '0;
    end else begin
      if (b_ready) b_valid <= 1'b0;
      if (takes_write) begin
        b_valid <= 1'b1;
        b_resp <= whole && !write_refused ? '0 : kSlaveError;
      end
      if (r_ready) r_valid <= 1'b0;
      if (takes_read) begin
        r_valid <= 1'b1;
        r_data <= read_data;
        r_resp <= read_refused || ar_address[1:0] != '0 ? kSlaveError : '0;
      end
    end
  end
endmodule
