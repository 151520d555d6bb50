"""Searches of a few steps: what they leave, that they go on to the bit, and what is refused."""

import csv
import json
from pathlib import Path

import pytest
import torch

from brevitas_multiquant import Assignment, load_packed
from brevitas_multiquant.recipes import search
from brevitas_multiquant.recipes.errors import Interrupted
from brevitas_multiquant.recipes.options.configurations import shipped
from brevitas_multiquant.recipes.options.search import parse_search
from brevitas_multiquant.recipes.run import loop
from tests.recipes import search_rank
from tests.recipes.ranks import run_ranks
from tests.recipes.runs import NAME, rows_of, tensors_of

TINY = [
    *("--img-size", "8", "--subset", "64", "--batch-size", "32", "--lr", "0.05"),
    *("--epochs", "5", "--experiment", NAME),
]


def run(output: Path, *more: str) -> int:
    return search.main([*TINY, "--output", str(output), *more])


def bits_of(output: Path) -> list[dict[str, str]]:
    with open(output / NAME / "bits.csv", newline="") as file:
        return list(csv.DictReader(file))


def found(output: Path) -> tuple[Assignment, dict]:
    folder = output / NAME
    assignment = Assignment.from_dict(json.loads((folder / "assignment.json").read_text()))
    return assignment, json.loads((folder / "search.json").read_text())


def test_a_search_leaves_a_mixed_network_and_its_curves(tmp_path, capsys):
    assert run(tmp_path) == 0
    assignment, values = found(tmp_path)
    net = load_packed(tmp_path / NAME / "last.safetensors")
    assert net.config.assignment == assignment == net.assignment
    assert Assignment.from_dict(values["assignment"]) == assignment
    rows = bits_of(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    bits = {name: float(value) for name, value in rows[-1].items() if " " in name}
    assert bits == {
        f"{site} {kind}": getattr(pair, kind)
        for site, pair in assignment.items()
        for kind in ("weight", "activation")
    }
    # before, they were real numbers, those that were rounded
    last = {name: float(value) for name, value in rows[-2].items() if " " in name}
    assert last == values["learned"] and any(bit % 1 for bit in last.values())
    assert float(rows[-1]["cost_over_budget"]) <= 1
    assert set(rows_of(tmp_path)[0]) == {
        *("epoch", "train_loss", "train_seconds", "eval_top1_8b", "lr", "cost_over_budget")
    }
    page = (tmp_path / NAME / "report.html").read_text()
    assert "Bits of activations" in page and values["headline"] in page
    printed = capsys.readouterr().out
    assert "12 bit-widths to learn within" in printed and "layer1.0.conv1" in printed


PLAIN: tuple[str, ...] = ()
CHANNELS = ("--kernel-wise", "--model-ema")
FLIQS = ("--strategy", "fliqs", "--policy-options", "rate=0.5", "uniform_share=0", "--model-ema")
GATES = ("--strategy", "bayesian_bits", "--kernel-wise", "--budget", "uniform=4")
AMED = ("--strategy", "amed", "--policy-options", "period=2")


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Options -> where a run with them, that nobody stopped, has written; each runs once."""
    folders = {}

    def of(more):
        if more not in folders:
            folders[more] = tmp_path_factory.mktemp("whole")
            assert run(folders[more], *more) == 0
        return folders[more]

    return of


@pytest.mark.parametrize(
    ("more", "epoch", "step"),
    [
        *((PLAIN, 1, 1), (PLAIN, 4, 0), (CHANNELS, 3, 1), (CHANNELS, 4, 0)),
        *((FLIQS, 1, 1), (AMED, 2, 0), (GATES, 2, 0)),
    ],
)
def test_a_search_that_was_stopped_goes_on_to_the_bit(
    tmp_path, monkeypatch, whole_runs, capsys, more, epoch, step
):
    """Among them after the last update of the search, and after the first one of whole bits."""
    whole, part = whole_runs(more), tmp_path
    before = loop.show_step

    def stopping(run_, loss, bar):
        before(run_, loss, bar)
        if (run_.progress.epoch, run_.progress.step - 1) == (epoch, step):
            raise Interrupted(15)

    monkeypatch.setattr(loop, "show_step", stopping)
    assert run(part, *more) == 143
    monkeypatch.setattr(loop, "show_step", before)
    told = capsys.readouterr().err.rpartition("go on with: brevitas-multiquant search ")[2]
    assert told.split() == ["--resume", str(part / NAME)]
    assert search.main(told.split()) == 0

    first, second = tensors_of(whole), tensors_of(part)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert bits_of(whole) == bits_of(part)
    assert found(whole) == found(part)


def test_channels_have_bits_of_their_own(tmp_path):
    assert run(tmp_path, "--kernel-wise", "--bits", "2", "4", "6") == 0
    assignment, values = found(tmp_path)
    assert set(values["channels"]) == {
        name.removesuffix(".weight_quant.tensor_quant.grid_impl.bits").removeprefix(
            "net.branches.0."
        )
        for name in tensors_of(tmp_path)
        if name.endswith("grid_impl.bits")
    }
    for layer, bits in values["channels"].items():
        stored = tensors_of(tmp_path)[
            f"net.branches.0.{layer}.weight_quant.tensor_quant.grid_impl.bits"
        ]
        assert stored.flatten().tolist() == bits and set(bits) <= {0, 2, 4, 6}
    assert {pair.activation for pair in assignment.values()} <= {2, 4, 6}
    net = load_packed(tmp_path / NAME / "last.safetensors")
    assert net.assignment == assignment


@pytest.mark.parametrize("strategy", ["fracbits", "amed", "fliqs", "bayesian_bits"])
def test_two_processes_search_as_one(strategy, tmp_path):
    """Both end with the same bits: gradients of bits are averaged as those of weights are, and
    what is drawn is drawn alike. An epoch is shorter than what AMED looks at before it scores."""
    argv = [*TINY, "--output", str(tmp_path), "--batch-size", "16", "--epochs", "3"]
    argv += ["--strategy", strategy]
    if strategy == "bayesian_bits":
        argv += ["--bits", "2", "4", "8"]
    run_ranks(2, search_rank.main, tmp_path, argv)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["cost"] <= ranks[0]["budget"]
    assert found(tmp_path)[0].to_dict() == ranks[0]["assignment"]


def test_one_search_for_each_budget(tmp_path):
    assert run(tmp_path, "--budget", "uniform=3", "ratio=0.3", "--epochs", "2") == 0
    folder = tmp_path / NAME
    with open(folder / "pareto.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["search"] for row in rows] == ["uniform_3", "ratio_0.3"]
    assert all(float(row["cost"]) <= float(row["budget"]) for row in rows)
    assert "Accuracy against cost of the searches" in (folder / "report.html").read_text()
    assert (folder / "uniform_3" / "assignment.json").is_file()
    for row in rows:  # no epoch was left for plain training: the network is stored all the same
        net = load_packed(folder / row["search"] / "last.safetensors")
        assignment = json.loads((folder / row["search"] / "assignment.json").read_text())
        assert net.assignment == Assignment.from_dict(assignment)
        summary = (folder / row["search"] / "summary.csv").read_text().splitlines()
        (*_, last) = csv.DictReader(summary)
        assert float(row["top1"]) == pytest.approx(float(last["eval_top1_8b"]), abs=0.005)


LUTS = ("--budget", "uniform=4", "--budget-of", "luts", "--target-fps", "1000")


def test_a_search_within_luts_goes_on_to_the_bit(tmp_path, monkeypatch):
    """What layers cost depends on the weights that it started with."""
    more = (*LUTS, "--profile", "finn", "--bits", "2", "4", "6", "--epochs", "3")
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run(whole, *more) == 0
    before = loop.show_step

    def stopping(run_, loss, bar):
        before(run_, loss, bar)
        if (run_.progress.epoch, run_.progress.step - 1) == (1, 0):
            raise Interrupted(15)

    monkeypatch.setattr(loop, "show_step", stopping)
    assert run(part, *more) == 143
    monkeypatch.setattr(loop, "show_step", before)
    assert search.main(["--resume", str(part / NAME)]) == 0
    assert found(whole) == found(part)
    assert bits_of(whole) == bits_of(part)


def test_the_published_term_and_convention(tmp_path, capsys):
    more = ("--regulariser", "l1", "--convention", "fracbits", "--pins", "layer3*=[8, null]")
    assert run(tmp_path, *more, "--epochs", "2") == 0
    assignment, _ = found(tmp_path)
    pinned = {site: pair.weight for site, pair in assignment.items() if "layer3" in site}
    assert set(pinned.values()) == {8}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--budget", "watts=3"), "--budget: expected one of"),
        (("--budget", "luts=3000"), "target_fps: expected frames a second"),
        (("--budget", "bitops=10"), "budget: expected"),
        (("--budget", "uniform=9"), "every layer can have them, without a search"),
        (("--method", "adabits"), "expected a network of one body to search bits for"),
        (("--float",), "expected a network of one body to search bits for"),
        (("--channel-bits", "0", "2"), "--channel-bits: expected it with --kernel-wise"),
        (
            ("--strategy", "fliqs", "--kappa", "2"),
            "--kappa: expected it with --strategy fracbits or bayesian_bits, got fliqs",
        ),
        (
            ("--policy-options", "beta=2"),
            "--policy-options: expected it with --strategy fliqs or amed, got fracbits",
        ),
        (("--kappa", "2"), "--kappa 2.0: expected it with --regulariser l1, got controller"),
        (
            ("--regulariser", "l1", "--horizon", "9"),
            "--horizon 9.0: expected it with --regulariser",
        ),
        (("--budget", "uniform=3", "uniform=3"), "--budget: expected different ones of one unit"),
        (("--budget", "uniform=3", "bytes=9000"), "expected different ones of one unit"),
        (("--budget", "bytes=9000", "--convention", "fracbits"), "convention: expected it with"),
        (("--pins", "nothing=3"), "pins: expected sites or layers, got 'nothing'"),
    ],
)
def test_refused(tmp_path, capsys, more, message):
    assert run(tmp_path, *more) in (1, 2)
    assert message in capsys.readouterr().err


def test_another_search_cannot_go_on_where_one_stopped(tmp_path, capsys):
    assert run(tmp_path, "--epochs", "2") == 0
    folder = str(tmp_path / NAME)
    assert search.main(["--resume", folder, "--budget", "uniform=4", "--epochs", "3"]) == 1
    assert "expected the search of that run, got another: --budget" in capsys.readouterr().err


def test_shipped_searches_are_of_the_published_budgets():
    """ResNet-18 as FracBits counts: 22.83 GBitOPs, and 0.12 more for a classifier of floats."""
    options = parse_search(["-c", "search_imagenet_resnet18", "--no-pretrained"])
    assert options.search_epochs == 120 and options.model.bits == list(range(1, 9))
    made = search.make_searched(options, 1000, None, lambda made: None)
    (limit,) = made.search.problem.limits
    classifier = 512 * 1000
    assert (limit - classifier * 8 * (32 - 3)) / 1e9 == pytest.approx(22.83, abs=0.005)
    assert made.search.ratio() > 1.2  # it starts half a bit above


@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("search_")])
def test_shipped_searches_parse(name):
    options = parse_search(["-c", name])
    assert options.search.budgets().keys() == {"uniform_3"}
    assert options.model.method == "individual" and options.model.bits[-1] == 8


def test_options_of_a_training_run_are_taken_over():
    options = parse_search(["-c", "digits_resnet8"])
    assert (options.optimisation.epochs, options.model.model) == (10, "cifar_resnet8")
    assert options.search_epochs == 8
