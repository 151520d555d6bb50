// What stands between FINN's layers in a simulation, and for the layers that FINN has in HLS alone.
//
// Streams are FINN's: a beat passes where valid and ready meet, the first of its numbers in the
// lowest bits. Each layer takes a beat a cycle, as FINN's do; the few cycles that an HLS layer keeps
// a beat are not modelled.

// A FIFO whose depth is set while the program runs, and that notes how full it was.
module mq_fifo #(parameter W = 8, MOST = 16, NUMBER = 0) (
    input clk, rst_n, set, report, input [15:0] number, input [31:0] depth,
    input [W-1:0] i_d, input i_v, output i_r, output [W-1:0] o_d, output o_v, input o_r);
  reg [W-1:0] words [MOST];
  int unsigned head, tail, fill, fullest, limit;
  initial limit = MOST;
  assign i_r = rst_n && fill < limit, o_v = fill != 0, o_d = words[head];
  wire push = i_v && i_r, pop = o_v && o_r;
  always @(posedge clk)
    if (!rst_n) begin head <= 0; tail <= 0; fill <= 0; fullest <= 0; end
    else begin
      if (push) begin words[tail] <= i_d; tail <= tail == MOST - 1 ? 0 : tail + 1; end
      if (pop) head <= head == MOST - 1 ? 0 : head + 1;
      fill <= fill + 32'(push) - 32'(pop);
      if (fill > fullest) fullest <= fill;
      if (set && 32'(number) == NUMBER) begin limit <= depth > MOST ? MOST : depth; fullest <= 0; end
      if (report) $display("FIFO %0d %0d", NUMBER, fullest);
    end
endmodule

// DuplicateStreams: a beat for each of N readers, which take it when they can.
module mq_duplicate #(parameter W = 8, N = 2) (
    input clk, rst_n, input [W-1:0] i_d, input i_v, output i_r,
    output [N*W-1:0] o_d, output [N-1:0] o_v, input [N-1:0] o_r);
  reg [N-1:0] done;
  assign o_d = {N{i_d}}, o_v = {N{i_v}} & ~done, i_r = i_v && &(done | o_r);
  always @(posedge clk) done <= !rst_n || i_r ? '0 : done | (o_v & o_r);
endmodule

// ElementwiseAdd: sums of two streams of numbers.
module mq_add #(parameter PE = 1, AW = 4, AS = 0, BW = 4, BS = 0, OW = 5, AB = 8, BB = 8, OB = 8) (
    input [AB-1:0] a_d, input a_v, output a_r, input [BB-1:0] b_d, input b_v, output b_r,
    output logic [OB-1:0] o_d, output o_v, input o_r);
  assign o_v = a_v && b_v, a_r = o_r && b_v, b_r = o_r && a_v;
  always_comb begin
    o_d = '0;
    for (int i = 0; i < PE; i++) begin
      automatic logic signed [OW:0] a = {{(OW > AW ? OW + 1 - AW : 1){AS != 0 && a_d[i*AW+AW-1]}}, a_d[i*AW+:AW]};
      automatic logic signed [OW:0] b = {{(OW > BW ? OW + 1 - BW : 1){BS != 0 && b_d[i*BW+BW-1]}}, b_d[i*BW+:BW]};
      o_d[i*OW+:OW] = OW'(a + b);
    end
  end
endmodule

// StreamingConcat: of each position the channels of one stream behind those of the other.
module mq_concat #(parameter N = 2, W = 8, int FOLDS [N] = '{1, 1}) (
    input clk, rst_n, input [N*W-1:0] i_d, input [N-1:0] i_v, output [N-1:0] i_r,
    output [W-1:0] o_d, output o_v, input o_r);
  int unsigned from, fold;
  assign o_d = i_d[from*W+:W], o_v = i_v[from], i_r = N'(o_r) << from;
  always @(posedge clk)
    if (!rst_n) begin from <= 0; fold <= 0; end
    else if (o_v && o_r) begin
      fold <= fold == FOLDS[from] - 1 ? 0 : fold + 1;
      if (fold == FOLDS[from] - 1) from <= from == N - 1 ? 0 : from + 1;
    end
endmodule

// GlobalAccPool: sums over all positions.
module mq_position_sum #(parameter PE = 1, IW = 4, IS = 0, OW = 8, FOLDS = 4, POSITIONS = 16, IB = 8, OB = 8) (
    input clk, rst_n, input [IB-1:0] i_d, input i_v, output i_r,
    output reg [OB-1:0] o_d, output reg o_v, input o_r);
  reg [OW-1:0] sums [FOLDS][PE];
  int unsigned fold, position;
  assign i_r = rst_n && (!o_v || o_r);
  always @(posedge clk)
    if (!rst_n) begin fold <= 0; position <= 0; o_v <= 0; end
    else if (i_r) begin
      o_v <= i_v && position == POSITIONS - 1;
      if (i_v) begin
        o_d <= '0;
        for (int i = 0; i < PE; i++) begin
          automatic logic [OW-1:0] x = OW'({{OW{IS != 0 && i_d[i*IW+IW-1]}}, i_d[i*IW+:IW]});
          automatic logic [OW-1:0] sum = position == 0 ? x : x + sums[fold][i];
          sums[fold][i] <= sum;
          o_d[i*OW+:OW] <= sum;
        end
        fold <= fold == FOLDS - 1 ? 0 : fold + 1;
        if (fold == FOLDS - 1) position <= position == POSITIONS - 1 ? 0 : position + 1;
      end
    end
endmodule

// Pool, behind a window of channel after channel: the largest number of POINTS beats, or their sum.
module mq_pool #(parameter PE = 1, IW = 4, IS = 0, OW = 4, POINTS = 4, SUM = 0, IB = 8, OB = 8) (
    input clk, rst_n, input [IB-1:0] i_d, input i_v, output i_r,
    output reg [OB-1:0] o_d, output reg o_v, input o_r);
  reg signed [OW:0] kept [PE];
  int unsigned point;
  assign i_r = rst_n && (!o_v || o_r);
  always @(posedge clk)
    if (!rst_n) begin point <= 0; o_v <= 0; end
    else if (i_r) begin
      o_v <= i_v && point == POINTS - 1;
      if (i_v) begin
        o_d <= '0;
        for (int i = 0; i < PE; i++) begin
          automatic logic signed [OW:0] x = (OW + 1)'({{(OW + 1){IS != 0 && i_d[i*IW+IW-1]}}, i_d[i*IW+:IW]});
          automatic logic signed [OW:0] next = point == 0 ? x : SUM != 0 ? x + kept[i] : x > kept[i] ? x : kept[i];
          kept[i] <= next;
          o_d[i*OW+:OW] <= next[OW-1:0];
        end
        point <= point == POINTS - 1 ? 0 : point + 1;
      end
    end
endmodule

// UpsampleNearestNeighbour: each position H times along a row, each row V times.
module mq_upsample #(parameter W = 8, FOLDS = 1, COLUMNS = 4, H = 2, V = 2) (
    input clk, rst_n, input [W-1:0] i_d, input i_v, output i_r,
    output [W-1:0] o_d, output o_v, input o_r);
  reg [W-1:0] row [COLUMNS*FOLDS];
  int unsigned fold, again, column, line;
  wire fresh = again == 0 && line == 0;
  assign o_d = fresh ? i_d : row[column*FOLDS+fold];
  assign o_v = rst_n && (!fresh || i_v), i_r = rst_n && fresh && o_r;
  always @(posedge clk)
    if (!rst_n) begin fold <= 0; again <= 0; column <= 0; line <= 0; end
    else if (o_v && o_r) begin
      if (fresh) row[column*FOLDS+fold] <= i_d;
      fold <= fold == FOLDS - 1 ? 0 : fold + 1;
      if (fold == FOLDS - 1) begin
        again <= again == H - 1 ? 0 : again + 1;
        if (again == H - 1) begin
          column <= column == COLUMNS - 1 ? 0 : column + 1;
          if (column == COLUMNS - 1) line <= line == V - 1 ? 0 : line + 1;
        end
      end
    end
endmodule

// MVAU, which reads its BEATS again for each of NEURONS folds, and VVAU, one fold after the other.
// A word of the weights is [PE][SIMD], the first in the lowest bits.
module mq_products #(parameter PE = 1, SIMD = 1, AW = 4, AS = 0, WW = 3, WS = 1, OW = 12, NEURONS = 4, BEATS = 9,
                     DEPTHWISE = 0, IB = 8, OB = 8, parameter string WEIGHTS = "") (
    input clk, rst_n, input [IB-1:0] i_d, input i_v, output i_r,
    output reg [OB-1:0] o_d, output reg o_v, input o_r);
  reg [PE*SIMD*WW-1:0] weights [NEURONS*BEATS];
  reg [IB-1:0] kept [DEPTHWISE ? 1 : BEATS];
  reg signed [OW-1:0] sums [PE];
  int unsigned neuron, beat;
  initial $readmemh(WEIGHTS, weights);
  wire fresh = DEPTHWISE != 0 || neuron == 0, free = rst_n && (!o_v || o_r), step = free && (!fresh || i_v);
  assign i_r = fresh && free;
  wire [IB-1:0] x = fresh ? i_d : kept[DEPTHWISE ? 0 : beat];
  wire [PE*SIMD*WW-1:0] word = weights[neuron*BEATS+beat];
  always @(posedge clk)
    if (!rst_n) begin neuron <= 0; beat <= 0; o_v <= 0; end
    else begin
      if (o_r) o_v <= 0;
      if (step) begin
        if (fresh && DEPTHWISE == 0) kept[beat] <= i_d;
        o_v <= beat == BEATS - 1;
        if (beat == BEATS - 1) o_d <= '0;
        for (int p = 0; p < PE; p++) begin
          automatic logic signed [OW-1:0] sum = beat == 0 ? '0 : sums[p];
          for (int s = 0; s < SIMD; s++) begin
            automatic int at = DEPTHWISE != 0 ? s * PE + p : s;
            automatic logic signed [AW:0] a = {AS != 0 && x[at*AW+AW-1], x[at*AW+:AW]};
            automatic logic signed [WW:0] w = {WS != 0 && word[(p*SIMD+s)*WW+WW-1], word[(p*SIMD+s)*WW+:WW]};
            sum = sum + OW'(a) * OW'(w);
          end
          sums[p] <= sum;
          if (beat == BEATS - 1) o_d[p*OW+:OW] <= sum;
        end
        beat <= beat == BEATS - 1 ? 0 : beat + 1;
        if (beat == BEATS - 1) neuron <= neuron == NEURONS - 1 ? 0 : neuron + 1;
      end
    end
endmodule
