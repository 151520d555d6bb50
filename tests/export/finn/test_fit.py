"""Boards by name and by part, what fits on them, and where memories go."""

import json
from dataclasses import replace

import pytest
import torch

from brevitas_multiquant import calibrate, multiquantize
from brevitas_multiquant.cost import luts
from brevitas_multiquant.errors import BoardError, ExportError
from brevitas_multiquant.export import export_finn, fit_table
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.folding import as_folded
from brevitas_multiquant.export.finn.hardware import hardware_layers, named_layers
from brevitas_multiquant.export.finn.layer_names import layer_names
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.switchable import with_gates
from brevitas_multiquant.export.finn.target import MEMORIES, make_target
from brevitas_multiquant.nn.subnet import extract_subnet
from tests.export.finn.nets import build
from tests.tiny import IMAGE, TinyNet

SMALL = "xc7z007sclg225-1"


def graph_of(name, bits):
    net = build(name)
    names = [f"branches.{index}" for index in net.selection[bits]]
    return lower(extract_subnet(net, bits), names, net.input_shape)


def test_resources_are_those_of_the_folded_layers():
    graph = graph_of("residual", 4)
    target = make_target("Pynq-Z1", None, 5000, 10.0)
    layers = luts.fold(hardware_layers(graph), luts.target_cycles(5000, 10.0), "DSP48E1")
    assert target.resources(graph) == luts.total(layers, "DSP48E1")
    assert [node for _, node in named_layers(graph)] == list(hardware_layers(graph))
    streams = {graph.input.name, *(layer.output.name for layer in graph.layers)}
    assert {name for name, _ in named_layers(graph)} <= streams


def test_memory_auto_takes_block_rams_and_keeps_the_cycles():
    graph = graph_of("residual", 8)
    finn, auto = (make_target("ZCU104", None, 1000, 5.0, memory) for memory in MEMORIES)
    before, after = finn.layers(graph), auto.layers(graph)
    assert auto.resources(graph).luts < finn.resources(graph).luts
    assert finn.resources(graph).bram18 < auto.resources(graph).bram18 <= 0.8 * 624
    assert list(map(luts.cycles.cycles, before)) == list(map(luts.cycles.cycles, after))
    assert finn.memory_config(graph) == {}
    # a line for each layer that differs, by the names that FINN keeps
    config = auto.memory_config(graph)
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    assert sum(map(len, config.values())) == changed > 5
    kinds = {kind for some in config.values() for kind in some}
    assert kinds <= {"Thresholding", "ConvolutionInputGenerator", "MVAU", "VVAU"}
    for some in config.values():
        for kind, attributes in some.items():
            both = {"depth_trigger_bram", "depth_trigger_uram"}  # the one alone means UltraRAM
            assert set(attributes) == (both if kind == "Thresholding" else {"ram_style"})


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    options = {"part": SMALL, "target_fps": 100000, "estimate": False}
    message = rf"8 bits: needs \d+ thousand LUTs, {SMALL} has 14 thousand \(FINN's estimate: \d+ th"
    with pytest.raises(BoardError, match=message) as e:
        export_finn(build("residual"), tmp_path / "new", [2, 8], **options)
    assert not (tmp_path / "new").exists()
    assert set(e.value.needs) == {8} and e.value.needs[8].luts > 14_400
    (project,) = export_finn(
        build("residual"), tmp_path / "new", [8], must_fit=False, **options
    ).values()
    config = json.loads((project / "dataflow_build_config.json").read_text())
    assert config["fpga_part"] == SMALL and "board" not in config
    assert config["steps"][-1] == "step_create_stitched_ip"
    assert config["generate_outputs"] == ["estimate_reports", "stitched_ip"]
    text = (project / "README.md").read_text()
    assert text.startswith(f"# 8 bits on {SMALL}") and "no board around it" in text


def test_the_parallelism_of_a_folding_file():
    """Of layers by FINN's names; others keep what the frames a second need."""
    target, graph = make_target("ZCU104", None, 1000, 5.0), graph_of("residual", 4)
    plain = as_folded(graph, target)
    assert plain == target.layers(graph)
    names = layer_names(graph, plain, target.board.dsp)
    assert len({*names}) == len(names)
    pairs = {"MVAU_hls_1": {"SIMD": 3}, "Thresholding_rtl_2": {"PE": 2, "depth_trigger_bram": 1}}
    pairs["ConvolutionInputGenerator_rtl_0"] = {"parallel_window": 1}
    mine = {"Defaults": {"PE": [2, ["MVAU_hls", "Pool_hls"]]}, **pairs}
    folded = dict(zip(names, as_folded(graph, target, mine), strict=True))
    changed = {n for n, node in zip(names, plain, strict=True) if folded[n] != node}
    assert changed == {*pairs, *(name for name in names if name.startswith("MVAU_hls"))}
    product, table = folded["MVAU_hls_1"], folded["Thresholding_rtl_2"]
    assert (product.pe, product.simd, table.pe, table.bram_from) == (2, 3, 2, 1)
    assert folded["ConvolutionInputGenerator_rtl_0"].parallel is True


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"MVAU_hls_99": {"PE": 2}}, r"folding: expected layers of \[.*'MVAU_hls_0'.*MVAU_hls_99"),
        ({"MVAU_hls_0": {"PE": 5}}, "folding: MVAU_hls_0: .*pe: expected a divisor of 6, got 5"),
        ({"MVAU_hls_0": {"ram_style": "tape"}}, "folding: MVAU_hls_0: .*ram_style: expected one"),
        ({"MVAU_hls_0": {"PE": "2"}}, "folding: MVAU_hls_0: .*pe: expected a whole number"),
        ({"MVAU_hls_0": {"PEE": 2}}, "folding: MVAU_hls_0: expected attributes .*'PEE'.*mean PE"),
        ({"Thresholding_rtl_0": {"SIMD": 2}}, r"expected attributes among \['PE', .*got 'SIMD'"),
        ({"Defaults": {"PE": [2]}}, r"folding: Defaults: PE: expected \[value, kinds"),
    ],
)
def test_folding_files_of_other_networks(file, message):
    target = make_target("ZCU104", None, 1000, 5.0)
    with pytest.raises(ExportError, match=message):
        as_folded(graph_of("residual", 4), target, file)


def test_an_edited_folding_is_checked_against_the_board(tmp_path):
    """Without FINN, before anything is written."""
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({f"MVAU_hls_{one}": {"PE": 6, "SIMD": 54} for one in range(4)}))
    options = {"part": SMALL, "estimate": False}
    export_finn(build("residual"), tmp_path / "fits", [4], **options)
    options["folding"] = mine
    with pytest.raises(BoardError, match=rf"4 bits: needs \d+ thousand LUTs, {SMALL} has"):
        export_finn(build("residual"), tmp_path / "new", [4], **options)
    assert not (tmp_path / "new").exists()
    export_finn(build("residual"), tmp_path / "new", [4], must_fit=False, **options)


def test_a_table_of_boards():
    table = fit_table(build("residual"), ["ZCU104"], [SMALL], target_fps=100000)
    assert [table.fits(bits, "ZCU104") for bits in (2, 4, 6, 8)] == [True] * 4
    assert [table.fits(bits, SMALL) for bits in (2, 8)] == [True, False]
    head, *rows = str(table).splitlines()
    assert head.split() == ["bits", "ZCU104", SMALL]
    assert [row.split()[0] for row in rows] == ["2", "4", "6", "8"]
    assert "no: " in rows[-1] and "no: " not in rows[0]
    graph = graph_of("residual", 2)
    target = make_target("ZCU104", None, 100000, 5.0)
    need, finn = target.needs(graph), target.resources(graph)
    assert table.needs[2][0] == need and f"{need.luts / 1000:.1f}k LUT" in rows[0]
    # FINN's estimate, and the LUTs that it leaves out
    assert need == replace(finn, luts=luts.corrected_luts(target.layers(graph)))
    assert need.luts > finn.luts


def test_a_table_of_one_accelerator_for_all_bit_widths():
    """The template that an export makes: gates of half branches, ports to write its tables."""
    net = multiquantize(TinyNet(), [2, 3, 4], profile="finn", input_shape=IMAGE)
    calibrate(net, [torch.rand(4, *IMAGE[1:])])
    one, each = (fit_table(net, ["ZCU104"], switchable=switchable) for switchable in (True, False))
    assert list(one.needs) == [4] and one.switchable == (2, 3, 4)
    assert str(one).splitlines()[1].startswith("one for 2, 3, 4  ")
    assert one.needs[4][0].luts > 1.2 * each.needs[4][0].luts and one.fits(4, "ZCU104")
    graphs = {
        bits: lower(extract_subnet(net, bits), branch_names(net, bits), IMAGE) for bits in net.bits
    }
    template = with_gates(graphs, net.selection)[4]
    target = make_target("ZCU104", None, 1000, 5.0, writable=True)
    assert one.needs[4][0] == target.needs(template)
    assert len(template.layers) == len(graphs[4].layers) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boards": ["ZCU105"]}, r"board: expected one of .*did you mean ZCU104"),
        ({"parts": ["xc6slx9"]}, r"part: expected a part number .*, got 'xc6slx9'"),
        ({"boards": []}, "boards and parts: expected at least one, got none"),
        ({"target_fps": 10**9}, "target_fps: expected at least a cycle a frame"),
        ({"clock_ns": "fast"}, "target_fps and clock_ns"),
        ({"memory": "bram"}, r"memory: expected one of \['finn', 'auto'\], got 'bram'"),
    ],
)
def test_bad_targets(options, message):
    with pytest.raises(ExportError, match=message):
        fit_table(build("bottleneck"), **options)


def test_board_and_part(tmp_path):
    with pytest.raises(ExportError, match="board and part: expected one of them"):
        export_finn(build("bottleneck"), tmp_path / "new", board="ZCU104", part=SMALL)


def test_a_project_with_memories(tmp_path):
    net = build("residual")
    (project,) = export_finn(net, tmp_path, [4], memory="auto", estimate=False).values()
    config = json.loads((project / "dataflow_build_config.json").read_text())
    after = config["steps"].index("multiquant_steps.step_multiquant_memory")
    assert config["steps"][after - 1] == "step_specialize_layers"
    memory = json.loads((project / "memory_config.json").read_text())
    assert memory == make_target(None, None, 1000, 5.0, "auto").memory_config(
        graph_of("residual", 4)
    )
    assert "memory_config.json" in (project / "README.md").read_text()


def test_folding_files(tmp_path):
    net = build("bottleneck")
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"MVAU_rtl_0": {"PE": 2}}))
    options = {"estimate": False}
    (project,) = export_finn(net, tmp_path / "a", [2], folding=mine, **options).values()
    written = json.loads((project / "folding_config.json").read_text())
    assert written == {"Defaults": {}, "MVAU_rtl_0": {"PE": 2}}
    both = export_finn(net, tmp_path / "b", [2, 4], folding={4: mine}, **options)
    assert json.loads((both[2] / "folding_config.json").read_text()) == {"Defaults": {}}
    assert json.loads((both[4] / "folding_config.json").read_text()) == written
    config = json.loads((both[4] / "dataflow_build_config.json").read_text())
    assert config["folding_config_file"] == "folding_config.json"


@pytest.mark.parametrize(
    ("content", "bits", "folding", "message"),
    [
        (None, [2], "none.json", "expected a folding_config.json of a project, got .*none.json"),
        ("{", [2], "bad.json", "expected a folding_config.json of a project"),
        ('{"MVAU_0": 2}', [2], "bad.json", "expected layers with their attributes"),
        ("{}", [2, 4], "bad.json", r"expected a file for each of \['2b', '4b'\]"),
        ("{}", [2], {8: "bad.json"}, r"expected files for \['2b'\], got \['8b'\]"),
    ],
)
def test_bad_folding_files(content, bits, folding, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ExportError, match=message):
        export_finn(build("bottleneck"), tmp_path / "new", bits, folding=folding, estimate=False)
    assert not (tmp_path / "new").exists()
