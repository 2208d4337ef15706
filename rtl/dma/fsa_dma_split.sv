// Cuts a DMA instruction's rows contiguously over the ports, the remainder to the first ones.
`include "fsa_config.sv"

module fsa_dma_split #(
    parameter int PORTS = 4,     // a power of two
    parameter int ROW_BITS = 6   // of the SRAM's row number
) (
    input  logic [127:0]              instruction,
    output logic [PORTS*9-1:0]        rows,
    output logic [PORTS*ROW_BITS-1:0] first_row,
    output logic [PORTS*39-1:0]       first_address,
    output logic [ROW_BITS-1:0]       row_stride,
    output logic [38:0]               address_stride
);
  localparam int S = $clog2(PORTS);
  logic [8:0] count, share, rest;
  logic [20:0] stride;
  assign count = instruction[fsa_config::F_DMA_REPEAT_WORD*32+fsa_config::F_DMA_REPEAT_LOW+:9];
  assign share = count >> S;
  assign rest = 9'(count[S-1:0]);
  // Signed, in two parts.
  assign stride = {
      instruction[fsa_config::F_DMA_MEMORY_STRIDE_WORD1*32+fsa_config::F_DMA_MEMORY_STRIDE_LOW1
                  +:21-fsa_config::F_DMA_MEMORY_STRIDE_BITS0],
      instruction[fsa_config::F_DMA_MEMORY_STRIDE_WORD*32+fsa_config::F_DMA_MEMORY_STRIDE_LOW
                  +:fsa_config::F_DMA_MEMORY_STRIDE_BITS0]};
  assign address_stride = 39'($signed(stride));
  assign row_stride = ROW_BITS'($signed(
      instruction[fsa_config::F_DMA_SRAM_STRIDE_WORD*32+fsa_config::F_DMA_SRAM_STRIDE_LOW+:5]));

  logic [38:0] base, address_step;
  logic [ROW_BITS-1:0] base_row, row_step;
  assign base = {
      instruction[fsa_config::F_DMA_MEMORY_ADDRESS_WORD1*32+fsa_config::F_DMA_MEMORY_ADDRESS_LOW1
                  +:39-fsa_config::F_DMA_MEMORY_ADDRESS_BITS0],
      instruction[fsa_config::F_DMA_MEMORY_ADDRESS_WORD*32+fsa_config::F_DMA_MEMORY_ADDRESS_LOW
                  +:fsa_config::F_DMA_MEMORY_ADDRESS_BITS0]};
  assign base_row =
      instruction[fsa_config::F_DMA_SRAM_ROW_WORD*32+fsa_config::F_DMA_SRAM_ROW_LOW+:ROW_BITS];
  assign address_step = address_stride * 39'(share);
  assign row_step = ROW_BITS'(row_stride * ROW_BITS'(share));
  genvar p;
  generate
    for (p = 0; p < PORTS; p = p + 1) begin : port
      logic [38:0] address;
      logic [ROW_BITS-1:0] row;
      if (p == 0) begin : first
        assign address = base;
        assign row = base_row;
      end else begin : next
        assign address =
            port[p-1].address + address_step + (9'(p - 1) < rest ? address_stride : '0);
        assign row = port[p-1].row + row_step + (9'(p - 1) < rest ? row_stride : '0);
      end
      assign rows[p*9+:9] = share + 9'(9'(p) < rest);
      assign first_row[p*ROW_BITS+:ROW_BITS] = row;
      assign first_address[p*39+:39] = address;
    end
  endgenerate
  logic unused;
  assign unused = &{1'b0, instruction};
endmodule
