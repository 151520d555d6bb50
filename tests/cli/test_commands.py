"""The command line: what it prints, and how it says no."""

import subprocess
import sys

import pytest

from brevitas_multiquant import Assignment
from brevitas_multiquant.cli import main


def test_inspect_prints_the_cost_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "resnet18", "--bits", "2", "4", "6", "8"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("resnet18 at 1x3x224x224, weights odd (-3, -1, 1, 3)\n")
    # 1,695.5 million: 1,814 of a float ResNet-18, less 118.0 in the stem and 0.5 in the head
    assert "   8  0,1,2,3   6782.2        118.5   108.52  13.400\n" in printed
    assert "all bit-widths in one file: 13.628 MB; float model: 46.758 MB" in printed


def test_inspect_names_the_weight_format(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["test_resnet", "--bits", "2", "--img-size", "32", "--weights", "ternary"]
    assert main(["inspect", *arguments]) == 0
    assert capsys.readouterr().out.startswith(
        "test_resnet at 1x3x32x32, weights ternary (-1, 0, 1)"
    )


def test_inspect_torchvision_with_plan(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["torchvision:resnet18", "--bits", "2", "--img-size", "64", "--num-classes", "5"]
    assert main(["inspect", *arguments, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "stem ends at maxpool" in printed
    assert printed.count("2-bit weights") == 19
    assert printed.count("float, shared") == 2


@pytest.mark.parametrize(
    ("status", "arguments", "message"),
    [
        (2, ["no_such_model"], "OptionError: timm cannot build 'no_such_model'"),
        (2, ["keras:resnet18"], "expected a timm model name or torchvision:NAME"),
        (2, ["test_resnet", "--bits", "17"], "expected 2 to 16, got 17"),
        (1, ["test_vit"], "cannot become a multi-branch network:\n  - 6 nodes"),
    ],
)
def test_refusals_are_one_message(
    status: int, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *arguments]) == status
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (["cifar_resnet8", "--in-chans", "1"], "1x1x32x32"),
        (["test_resnet", "--in-chans", "4", "--img-size", "32"], "1x4x32x32"),
        (["cifar_resnet8", "--img-size", "16"], "1x3x16x16"),
        (["torchvision:resnet18", "--img-size", "32"], "1x3x32x32"),
        (["torchvision:resnet18", "--img-size", "32", "--in-chans", "3"], "1x3x32x32"),
    ],
)
def test_images_are_what_was_asked_for(
    arguments: list[str], shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *arguments, "--bits", "2"]) == 0
    assert f" at {shape}," in capsys.readouterr().out


@pytest.mark.parametrize("command", ["inspect", "check"])
def test_what_a_library_cannot_take_is_refused(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "torchvision:resnet18", "--in-chans", "1"]) == 2
    captured = capsys.readouterr()
    assert "--in-chans 1: torchvision builds models with 3 alone" in captured.err
    assert not captured.out


def test_wrong_usage_exits_with_2() -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["inspect", "resnet18", "--no-such-option"])
    assert exit_info.value.code == 2


def test_module_is_runnable() -> None:
    command = [sys.executable, "-m", "brevitas_multiquant", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "inspect" in result.stdout


def test_check_of_a_model_that_maps(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["mobilenetv1_100", "--bits", "2", "--img-size", "32", "--num-classes", "10"]
    assert main(["check", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed == "mobilenetv1_100 at 1x3x32x32, 2 bits: maps to one dataflow partition\n"


def test_check_tells_what_negated_weights_of_an_asymmetric_format_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["cifar_resnet8", "--bits", "2", "--img-size", "8", "--weights"]
    printed = []
    for weights in ("int2", "ternary"):
        assert main(["check", *arguments, weights]) == 0
        printed.append(capsys.readouterr().out)
    note = "note: a layer takes INT3 weights instead of INT2 where the norm behind it has negative"
    assert [text.startswith(note) for text in printed] == [True, False]


def test_check_names_every_violation(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["test_convnext", "--bits", "2", "--img-size", "32"]
    assert main(["check", *arguments]) == 1
    *kinds, verdict = capsys.readouterr().out.splitlines()
    assert verdict.endswith(f"violation(s) of {len(kinds)} kind(s)")
    norms = next(kind for kind in kinds if "LayerNorm2d" in kind)
    assert "places (stem.stem.1, branches.0.stages.1.downsample.0, " in norms
    assert "LayerNorm2d has no dataflow layer here: use nn.BatchNorm2d" in norms


def test_assignments_are_looked_at_too(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mixed.yaml"
    mixed = Assignment(4, {"layer1.0.conv2": (2, 2)})
    mixed.save(path)
    arguments = ["cifar_resnet8", "--bits", "2", "4"]
    arguments += ["--assignment", str(path)]
    assert main(["inspect", *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"{mixed.name}: network at 4 bits" in printed
    (row,) = (line for line in printed.splitlines() if line.startswith(f"{mixed.name}  0,1 "))
    (uniform,) = (line for line in printed.splitlines() if line.strip().startswith("4  0,1 "))
    assert float(row.split()[4]) < float(uniform.split()[4])
    assert main(["check", *arguments]) == 0
    assert f"2, 4 bits, assignment {mixed.name}: maps to one" in capsys.readouterr().out


def test_an_assignment_that_does_not_fit_is_refused(
    tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    Assignment(4, {"conv": (2, 2)}).save(tmp_path / "mixed.json")
    given = ["--bits", "2", "4", "--assignment", str(tmp_path / "mixed.json")]
    assert main(["inspect", "cifar_resnet8", *given]) == 2
    assert "expected sites of the network, got 'conv'" in capsys.readouterr().err
    assert main(["check", "cifar_resnet8", "--assignment", str(tmp_path / "none.json")]) == 2
    assert "expected a file that can be read" in capsys.readouterr().err


def test_check_prints_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["cifar_resnet8", "--bits", "2", "8", "--img-size", "8", "--num-classes", "10"]
    boards = ["--board", "ZCU104", "--fpga-part", "xc7z010clg400-1"]
    assert main(["check", *arguments, *boards]) == 0
    *_, head, two, eight = capsys.readouterr().out.splitlines()
    assert head.split() == ["bits", "ZCU104", "xc7z010clg400-1"]
    assert "no: " not in two and eight.rstrip().split("  ")[-1].startswith("no: ")


def test_an_assignment_of_the_networks_own(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a search leaves: weights and activations of any bits, for good."""
    own = Assignment(4, {"layer1.0.conv1": (3, 8), "layer1.0.conv2": (5, 2)})
    own.save(tmp_path / "own.json")
    given = ["cifar_resnet8", "--method", "individual", "--assignment", str(tmp_path / "own.json")]
    assert main(["inspect", *given]) == 0
    printed = capsys.readouterr().out
    rows = [line.split()[0] for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert rows == ["4", f"{own.name}:"]
    assert main(["check", *given]) == 0
    assert "cifar_resnet8 at 1x3x32x32, 4 bits: maps to one" in capsys.readouterr().out
    assert main(["inspect", *given, given[-1]]) == 2
    assert "expected one file with --method individual" in capsys.readouterr().err
