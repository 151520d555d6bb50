"""One SystemVerilog top for an accelerator: FINN's own layers, and ours where FINN has HLS alone.

Each tensor between two layers is a stream, ``NAME_d``, ``NAME_v`` and ``NAME_r``: data, valid and
ready. Layers of FINN's in RTL are those that FINN generates, with the tables and weights that it
builds in; ``rtl/layers.sv`` has the others, and the FIFOs.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
AXI = {
    "AWVALID": "awvalid && port == {port}",
    "AWREADY": "awready_{port}",
    "AWADDR": "awaddr",
    "WVALID": "wvalid && port == {port}",
    "WREADY": "wready_{port}",
    "WDATA": "wdata",
    "WSTRB": "4'hf",
    "BVALID": "bvalid_{port}",
    "BREADY": "1'b1",
    "ARVALID": "1'b0",
    "RREADY": "1'b1",
}
"""Pins of a port that is written."""
IDLE = {"AWVALID": "1'b0", "WVALID": "1'b0", "BREADY": "1'b1", "ARVALID": "1'b0", "RREADY": "1'b1"}
"""Pins of a port that nobody uses."""
WIDE = 96
"""Bits from which on a port is an array of words in C++, as the harness takes it."""


class Top:
    """The text of the top, and all that belongs to it.

    Args:
        model: hardware layers with width converters and FIFOs, each with FINN's name.
        part: number of the FPGA part.
        clock_ns: clock period.
        folder: where files go.

    Attributes:
        fifos: names of the FIFOs, in the order of their numbers.
        ports: names of the threshold layers with a port, in the order of their numbers.
        beat_bits: width of the widest stream port, a multiple of 32.
        sources: SystemVerilog files.
        stand_ins: kinds of layers of our own, and how many.
    """

    def __init__(self, model: Any, part: str, clock_ns: float, folder: Path) -> None:
        from finn.util.basic import getHWCustomOp

        self.model, self.part, self.clock_ns, self.folder = model, part, clock_ns, folder
        self.fifos: list[str] = []
        self.ports: list[str] = []
        self.stand_ins: dict[str, int] = {}
        self._files: dict[str, Path] = {}
        self._lines: list[str] = []
        self._names: dict[str, str] = {}
        self.layers = {node.name: getHWCustomOp(node) for node in model.graph.node}
        self.first, self.last = (
            self._end(ends) for ends in (model.graph.input, model.graph.output)
        )
        widths = self.first[1], self.last[1]
        self.beat_bits = max(WIDE, -(-max(widths) // 32) * 32)
        for node in model.graph.node:
            self._declare(node)
        for node in model.graph.node:
            self._instantiate(node, self.layers[node.name])
        source, sink = (self._names[one[0].name] for one in (model.graph.input, model.graph.output))
        self._lines += [
            f"assign {source}_d = in_data[{widths[0] - 1}:0], {source}_v = in_valid;",
            f"assign in_ready = {source}_r, {sink}_r = out_ready, out_valid = {sink}_v;",
            f"assign out_data = {self.beat_bits}'({sink}_d);",
        ]

    @property
    def sources(self) -> list[Path]:
        """Packages first."""
        return sorted(self._files.values(), key=lambda path: "pkg" not in path.name)

    def write(self) -> None:
        """``top.sv`` in the folder."""
        bits, ports = self.beat_bits, range(len(self.ports))
        wires = [f"wire awready_{i}, wready_{i}, bvalid_{i};" for i in ports]
        answers = {
            name: " | ".join([f"(port == {i} && {name}_{i})" for i in ports] or ["1'b0"])
            for name in ("awready", "wready", "bvalid")
        }
        text = [
            "module top (input clk, rst_n, set, report, in_valid, out_ready, awvalid, wvalid,",
            f"  input [{bits - 1}:0] in_data, output in_ready, output [{bits - 1}:0] out_data,",
            "  output out_valid, awready, wready, bvalid, input [15:0] number, port,",
            "  input [31:0] depth, awaddr, wdata);",
            *(f"assign {name} = {value};" for name, value in answers.items()),
            *wires,
            *self._lines,
            "endmodule",
        ]
        (self.folder / "top.sv").write_text("\n".join(text) + "\n")

    def _end(self, ends: Any) -> tuple[Any, int]:
        """The layer at one end of the accelerator, and the width of its stream."""
        (end,) = ends
        for node in self.model.graph.node:
            layer = self.layers[node.name]
            if end.name in node.input:
                return layer, layer.get_instream_width_padded(0)
            if end.name in node.output:
                return layer, layer.get_outstream_width_padded(0)
        raise RuntimeError(f"rtl.py: no layer reads or gives {end.name}")

    def _streams_of(self, node: Any) -> list[tuple[int, str]]:
        """Inputs of a layer that are streams, not constants, with their places."""
        constants = {one.name for one in self.model.graph.initializer}
        return [(k, name) for k, name in enumerate(node.input) if name and name not in constants]

    def _declare(self, node: Any) -> None:
        layer, (given,) = self.layers[node.name], self.model.graph.input
        wires = {name: layer.get_outstream_width_padded(k) for k, name in enumerate(node.output)}
        for k, name in self._streams_of(node):
            if name == given.name:
                wires[name] = layer.get_instream_width_padded(k)
        for name, width in wires.items():
            wire = self._names[name] = f"s{len(self._names)}"
            self._lines.append(f"wire [{width - 1}:0] {wire}_d; wire {wire}_v, {wire}_r;")

    def _instantiate(self, node: Any, layer: Any) -> None:
        if node.op_type.startswith("StreamingFIFO"):
            self._fifo(node, layer)
        elif node.op_type.endswith("_rtl"):
            self._generated(node, layer)
        else:
            kind = node.op_type.removesuffix("_hls")
            if kind not in _STAND_INS:
                raise RuntimeError(f"rtl.py: no model of {node.op_type}, the layer {node.name}")
            self.stand_ins[kind] = self.stand_ins.get(kind, 0) + 1
            module, parameters, pins = _STAND_INS[kind](self, node, layer)
            self._instance(module, parameters, node.name, pins)

    def _instance(self, module: str, parameters: dict[str, Any], name: str, pins: Any) -> None:
        given = f" #({_pins(parameters)})" if parameters else ""
        self._lines.append(f"{module}{given} {name}_instance ({_pins(pins)});")

    def pins(
        self, node: Any, ins: tuple[str, ...] = ("i",), clocked: bool = True
    ) -> dict[str, str]:
        """Pins of a stand-in: clock, streams in and one stream out."""
        streams = [name for _, name in self._streams_of(node)]
        found = {"clk": "clk", "rst_n": "rst_n"} if clocked else {}
        for short, name in (*zip(ins, streams, strict=True), ("o", node.output[0])):
            found |= {f"{short}_{one}": f"{self._names[name]}_{one}" for one in "dvr"}
        return found

    def joined(self, names: list[str], signal: str) -> str:
        """One signal of several streams, the first in the lowest bits."""
        return "{" + ", ".join(f"{self._names[name]}_{signal}" for name in reversed(names)) + "}"

    def _fifo(self, node: Any, layer: Any) -> None:
        beats = int(np.prod(layer.get_folded_output_shape()[:-1]))
        pins = self.pins(node) | {one: one for one in ("set", "report", "number", "depth")}
        sizes = {"W": layer.get_instream_width_padded(0), "MOST": 2 * beats + 64}
        self._instance("mq_fifo", {**sizes, "NUMBER": len(self.fifos)}, node.name, pins)
        self.fifos.append(node.name)

    def _generated(self, node: Any, layer: Any) -> None:
        """A layer as FINN's code generation writes it."""
        code = self.folder / node.name
        code.mkdir()
        layer.set_nodeattr("code_gen_dir_ipgen", str(code))
        layer.generate_hdl(self.model, self.part, self.clock_ns)
        for path in map(Path, layer.get_rtl_file_list(abspath=True)):
            self._files.setdefault(path.name, path if path.exists() else code / path.name)
        for table in code.glob("*_threshs_*.dat"):  # found relative to where the program runs
            shutil.copy(table, self.folder)
        pins = {"ap_clk": "clk", "ap_rst_n": "rst_n"}
        ends = [(f"in{k}", name) for k, name in self._streams_of(node)]
        ends += [(f"out{k}", name) for k, name in enumerate(node.output)]
        for end, name in ends:
            signals = zip(("TDATA", "TVALID", "TREADY"), "dvr", strict=True)
            pins |= {f"{end}_V_{long}": f"{self._names[name]}_{short}" for long, short in signals}
        kind = node.op_type.removesuffix("_rtl")
        if kind == "Thresholding" and layer.get_nodeattr("runtime_writeable_weights"):
            pins |= {f"s_axilite_{pin}": to.format(port=len(self.ports)) for pin, to in AXI.items()}
            self.ports.append(node.name)
        elif kind in ("Thresholding", "FMPadding"):
            pins |= {f"s_axilite_{pin}": value for pin, value in IDLE.items()}
        elif kind in ("MVAU", "VVAU"):
            pins |= self._weights(node, layer, code)
        top = layer.get_nodeattr("gen_top_module") or layer.get_verilog_top_module_name()
        self._instance(top, {}, node.name, pins)

    def _weights(self, node: Any, layer: Any, code: Path) -> dict[str, str]:
        """The memory that streams the weights of a product, FINN's own; its pins at the product."""
        from finn.util.settings import get_settings

        name, library = node.name, Path(get_settings().finn_rtllib)
        module, memory = f"{name}_memstream_wrapper", f"{name}_memblock.dat"
        wrapper = code / f"{module}.v"
        text = wrapper.read_text().replace(str(code / "memblock.dat"), memory)
        wrapper.write_text(text)
        shutil.copy(code / "memblock.dat", self.folder / memory)
        for part in ("axi/hdl/axilite.sv", "memstream/hdl/memstream.sv"):
            self._files.setdefault(Path(part).name, library / part)
        self._files.setdefault("memstream_axi.sv", library / "memstream/hdl/memstream_axi.sv")
        self._files[wrapper.name] = wrapper
        wires = {"tdata": f"{name}_d", "tvalid": f"{name}_v", "tready": f"{name}_r"}
        bits = layer.get_instream_width_padded(1)
        self._lines.append(f"wire [{bits - 1}:0] {name}_d; wire {name}_v, {name}_r;")
        pins = {"ap_clk": "clk", "ap_clk2x": "clk", "ap_rst_n": "rst_n"}
        pins |= {f"m_axis_0_{pin}": wire for pin, wire in wires.items()}
        pins |= {f"s_axilite_{pin}": value for pin, value in IDLE.items()}
        self._instance(module, {}, f"{name}_memory", pins)
        return {"ap_clk2x": "clk", **{f"in1_V_{k.upper()}": wire for k, wire in wires.items()}}


def _pins(pins: dict[str, Any]) -> str:
    return ", ".join(f".{name}({value})" for name, value in pins.items())


def _signed_bits(datatype: Any) -> tuple[int, int]:
    return datatype.bitwidth(), int(datatype.signed())


Made = tuple[str, dict[str, Any], dict[str, str]]
"""Module, parameters and pins of a stand-in."""


def _beats(layer: Any) -> dict[str, int]:
    return {"IB": layer.get_instream_width_padded(0), "OB": layer.get_outstream_width_padded(0)}


def _duplicate(top: Top, node: Any, layer: Any) -> Made:
    outputs = list(node.output)
    pins = top.pins(node) | {f"o_{one}": top.joined(outputs, one) for one in "dvr"}
    return "mq_duplicate", {"W": layer.get_outstream_width_padded(0), "N": len(outputs)}, pins


def _add(top: Top, node: Any, layer: Any) -> Made:
    (a, a_signed), (b, b_signed) = (_signed_bits(layer.get_input_datatype(k)) for k in (0, 1))
    widths = {"AB": layer.get_instream_width_padded(0), "BB": layer.get_instream_width_padded(1)}
    sizes = {"AW": a, "AS": a_signed, "BW": b, "BS": b_signed}
    sizes |= {"PE": layer.get_nodeattr("PE"), "OW": layer.get_output_datatype(0).bitwidth()}
    sizes |= {**widths, "OB": layer.get_outstream_width_padded(0)}
    return "mq_add", sizes, top.pins(node, ("a", "b"), clocked=False)


def _concat(top: Top, node: Any, layer: Any) -> Made:
    inputs, width = list(node.input), layer.get_outstream_width_padded(0)
    for k, _ in enumerate(inputs):
        if layer.get_instream_width(k) != layer.get_outstream_width(0):
            raise RuntimeError(f"rtl.py: {node.name}: expected operands of one type")
    folds = [str(layer.get_folded_input_shape(k)[-2]) for k, _ in enumerate(inputs)]
    sizes = {"N": len(inputs), "W": width, "FOLDS": "'{" + ", ".join(folds) + "}"}
    pins = {f"o_{one}": f"{top._names[node.output[0]]}_{one}" for one in "dvr"}
    pins |= {"clk": "clk", "rst_n": "rst_n"}
    return "mq_concat", sizes, pins | {f"i_{one}": top.joined(inputs, one) for one in "dvr"}


def _position_sum(top: Top, node: Any, layer: Any) -> Made:
    bits, signed = _signed_bits(layer.get_input_datatype(0))
    pe = layer.get_nodeattr("PE")
    sizes = {"PE": pe, "IW": bits, "IS": signed, "OW": layer.get_output_datatype(0).bitwidth()}
    sizes["FOLDS"] = layer.get_nodeattr("NumChannels") // pe
    sizes["POSITIONS"] = int(np.prod(layer.get_nodeattr("numInputVectors")))
    return "mq_position_sum", sizes | _beats(layer), top.pins(node)


def _pool(top: Top, node: Any, layer: Any) -> Made:
    function = layer.get_nodeattr("Function")
    if function not in ("MaxPool", "AccPool"):
        raise RuntimeError(f"rtl.py: {node.name}: no model of {function}")
    bits, signed = _signed_bits(layer.get_input_datatype(0))
    sizes = {"PE": layer.get_nodeattr("PE"), "IW": bits, "IS": signed}
    sizes |= {"OW": layer.get_output_datatype(0).bitwidth(), "SUM": int(function == "AccPool")}
    sizes["POINTS"] = int(np.prod(layer.get_nodeattr("KernelSize")))
    return "mq_pool", sizes | _beats(layer), top.pins(node)


def _upsample(top: Top, node: Any, layer: Any) -> Made:
    columns, simd = layer.get_nodeattr("WI"), layer.get_nodeattr("SIMD")
    sizes = {"W": layer.get_outstream_width_padded(0), "COLUMNS": columns}
    sizes["FOLDS"] = layer.get_nodeattr("NumChannels") // simd
    sizes["H"] = layer.get_nodeattr("WO") // columns
    sizes["V"] = layer.get_nodeattr("HO") // layer.get_nodeattr("HI")
    return "mq_upsample", sizes, top.pins(node)


def _products(top: Top, node: Any, layer: Any) -> Made:
    weights = layer.get_hw_compatible_weight_tensor(top.model.get_initializer(node.input[1]))
    pe, words, simd = weights[0].shape
    bits, signed = _signed_bits(layer.get_input_datatype(1))
    numbers = weights[0].astype(np.int64).transpose(1, 0, 2).reshape(words, -1)
    file = top.folder / f"{node.name}_weights.dat"
    file.write_text("".join(f"{packed(row, bits)}\n" for row in numbers))
    depthwise = int(node.op_type.startswith("VVAU"))
    outputs = layer.get_nodeattr("Channels" if depthwise else "MH") // pe
    a, a_signed = _signed_bits(layer.get_input_datatype(0))
    sizes = {"PE": pe, "SIMD": simd, "AW": a, "AS": a_signed, "WW": bits, "WS": signed}
    sizes |= {"OW": layer.get_output_datatype(0).bitwidth(), "DEPTHWISE": depthwise}
    sizes |= {"NEURONS": outputs, "BEATS": words // outputs, "WEIGHTS": f'"{file.name}"'}
    return "mq_products", sizes | _beats(layer), top.pins(node)


def packed(numbers: Any, bits: int) -> str:
    """Integers as one hexadecimal number, the first in the lowest bits."""
    mask = (1 << bits) - 1
    return f"{sum((int(one) & mask) << (place * bits) for place, one in enumerate(numbers)):x}"


_STAND_INS: dict[str, Callable[[Top, Any, Any], Made]] = {
    "DuplicateStreams": _duplicate,
    "ElementwiseAdd": _add,
    "StreamingConcat": _concat,
    "GlobalAccPool": _position_sum,
    "Pool": _pool,
    "UpsampleNearestNeighbour": _upsample,
    "MVAU": _products,
    "VVAU": _products,
}
