// A memory of rows in two banks (by the row's last bit), each cut into sub-banks of one DMA beat,
// each of which reads one word and writes one word a cycle. Whole rows come first, then the DMA's
// ports in their order; what finds its sub-bank taken is not ready. Data come a cycle after a read.
module fsa_sram #(
    parameter int ROWS = 64,
    parameter int BITS = 128,        // of a row
    parameter int BEAT = 64,         // of a DMA port; divides BITS
    parameter int PORTS = 4,
    parameter bit PORTS_WRITE = 1'b1,  // else they read
    localparam int ROW_BITS = $clog2(ROWS),
    localparam int BEATS = BITS / BEAT,
    localparam int BEAT_BITS = BEATS == 1 ? 1 : $clog2(BEATS)
) (
    input  logic                       clock,
    input  logic                       read,
    input  logic [ROW_BITS-1:0]        read_row,
    output logic [BITS-1:0]            read_data,
    input  logic                       write,
    input  logic [ROW_BITS-1:0]        write_row,
    input  logic [BITS-1:0]            write_data,
    input  logic [PORTS-1:0]           port_valid,
    output logic [PORTS-1:0]           port_ready,
    input  logic [PORTS*ROW_BITS-1:0]  port_row,
    input  logic [PORTS*BEAT_BITS-1:0] port_beat,
    input  logic [PORTS*BEAT-1:0]      port_write_data,
    output logic [PORTS*BEAT-1:0]      port_read_data
);
  localparam int DEPTH = (ROWS + 1) / 2;
  localparam int A = ROW_BITS == 1 ? 1 : ROW_BITS - 1;  // address within a bank

  // Who has each sub-bank: no earlier port, and no whole row.
  logic [PORTS-1:0] granted;
  always_comb begin
    for (int p = 0; p < PORTS; p = p + 1) begin
      granted[p] = 1'b1;
      if (PORTS_WRITE) begin
        if (write && write_row[0] == port_row[p*ROW_BITS]) granted[p] = 1'b0;
      end else if (read && read_row[0] == port_row[p*ROW_BITS]) granted[p] = 1'b0;
      for (int q = 0; q < p; q = q + 1) begin
        if (port_valid[q] && port_row[q*ROW_BITS] == port_row[p*ROW_BITS]
            && port_beat[q*BEAT_BITS+:BEAT_BITS] == port_beat[p*BEAT_BITS+:BEAT_BITS])
          granted[p] = 1'b0;
      end
    end
  end
  assign port_ready = granted;

  logic read_bank;
  logic [PORTS-1:0] port_bank;
  logic [PORTS*BEAT_BITS-1:0] port_read_beat;
  always_ff @(posedge clock) begin
    if (read) read_bank <= read_row[0];
    for (int p = 0; p < PORTS; p = p + 1) begin
      port_bank[p] <= port_row[p*ROW_BITS];
    end
    port_read_beat <= port_beat;
  end

  logic [2*BITS-1:0] outputs;  // of the banks
  assign read_data = read_bank ? outputs[BITS+:BITS] : outputs[0+:BITS];
  genvar port;
  generate
    for (port = 0; port < PORTS; port = port + 1) begin : reader
      logic [BITS-1:0] row;
      assign row = port_bank[port] ? outputs[BITS+:BITS] : outputs[0+:BITS];
      assign port_read_data[port*BEAT+:BEAT] =
          row[port_read_beat[port*BEAT_BITS+:BEAT_BITS]*BEAT+:BEAT];
    end
  endgenerate

  genvar bank, beat;
  generate
    for (bank = 0; bank < 2; bank = bank + 1) begin : half
      for (beat = 0; beat < BEATS; beat = beat + 1) begin : part
        logic [BEAT-1:0] words[DEPTH];
        logic reads, writes;
        logic [A-1:0] read_address, write_address;
        logic [BEAT-1:0] data;
        always_comb begin
          reads = read && read_row[0] == 1'(bank);
          read_address = A'(read_row >> 1);
          writes = write && write_row[0] == 1'(bank);
          write_address = A'(write_row >> 1);
          data = write_data[beat*BEAT+:BEAT];
          for (int p = 0; p < PORTS; p = p + 1) begin
            if (port_valid[p] && granted[p] && port_row[p*ROW_BITS] == 1'(bank)
                && port_beat[p*BEAT_BITS+:BEAT_BITS] == BEAT_BITS'(beat)) begin
              if (PORTS_WRITE) begin
                writes = 1'b1;
                write_address = A'(port_row[p*ROW_BITS+:ROW_BITS] >> 1);
                data = port_write_data[p*BEAT+:BEAT];
              end else begin
                reads = 1'b1;
                read_address = A'(port_row[p*ROW_BITS+:ROW_BITS] >> 1);
              end
            end
          end
        end
        logic [BEAT-1:0] word;
        assign outputs[bank*BITS+beat*BEAT+:BEAT] = word;
        always_ff @(posedge clock) begin
          if (writes) words[write_address] <= data;
          if (reads) word <= words[read_address];
        end
      end
    end
  endgenerate
endmodule
