"""The comparison of methods: what it runs, and the table it makes of what is there."""

import argparse
import contextlib
import json
from types import SimpleNamespace

import pytest

from benchmarks import methods, methods_finn
from benchmarks.pages import write_between
from brevitas_multiquant.core.method import METHODS
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results.report import summary_row, write_summary

KNOWN = [name for name, variant in methods.VARIANTS.items() if variant.method in {None, *METHODS}]


@pytest.mark.parametrize("name", KNOWN)
def test_options_of_a_variant(name):
    """All under one recipe; nothing but the method, its bits and its grid differs."""
    variant = methods.VARIANTS[name]
    options = parse_train(["-c", methods.CONFIG, "--data-dir", "x", *variant.arguments])
    assert options.model.float == (variant.method is None)
    if variant.method is not None:
        assert (options.model.method, tuple(options.model.bits)) == (variant.method, variant.bits)
        assert options.objective.norm_batches == 10
        sampled = options.objective.bits_per_step
        assert sampled == (2.5 if len(variant.bits) > 1 else None)
    rates, data = options.optimisation, options.data
    assert (rates.epochs, rates.lr, rates.opt, rates.warmup_epochs) == (30, 0.1, "sgd", 1)
    assert (data.img_size, data.padding, data.batch_size, data.dataset) == (16, 2, 128, "")
    assert rates.sched == "cosine" and rates.sched_on_updates


def whole_run(folder, accuracy, facts):
    """Two epochs, of which the last counts."""
    folder.mkdir(parents=True)
    rows = [
        summary_row(0, 1.0, 1.0, dict.fromkeys(accuracy, 99.0), 0.1),
        summary_row(1, 1.0, 1.0, accuracy, 0.0),
    ]
    write_summary(folder, rows)
    (folder / methods.FACTS).write_text(json.dumps(facts))


def test_the_table_has_mean_and_deviation_of_the_last_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "KEPT", tmp_path)
    facts = {"file_bytes": 91400, "cpu_seconds": 120.0, "bitops": {"2": 12e6, "8": 193e6}}
    for seed, offset in enumerate((-1, 0, 1)):
        accuracy = {bits: 50.0 + bits + offset for bits in (2, 4, 6, 8)}
        whole_run(tmp_path / f"multiquant_s{seed}", accuracy, facts)
    whole_run(tmp_path / "float_s0", {32: 75.0}, {"file_bytes": 320000, "cpu_seconds": None})
    found = {name: methods.results_of(name, (0, 1, 2)) for name in ("multiquant", "float")}
    assert [len(runs) for runs in found.values()] == [3, 1]
    *_, first, second = methods.table(found, methods.WIDE).splitlines()
    needs = methods_finn.known(methods.IMAGE_SIZE)["multiquant"]
    hardware = " / ".join(
        f"{needs[key]['luts'] / 1000:.1f} ({needs[key]['dsp']})" for key in ("2", "4", "6", "8")
    )
    expected = ("52.00 ± 1.00", "54.00 ± 1.00", "56.00 ± 1.00", "58.00 ± 1.00")
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells == ["MultiQuant", "3", *expected, "", "91.4", "0.012 / 0.193", hardware, "2"]
    assert [cell.strip() for cell in second.strip("|").split("|")] == [
        *("float", "1", "", "", "", "", "75.00", "320.0", "", "", "")
    ]
    assert methods.of_list(found, methods.NARROW) == []
    methods.draw(found, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


def test_what_was_estimated_is_there_for_every_method_and_not_invented():
    for variant in methods.VARIANTS.values():
        row = variant.hardware or variant.method or ""
        cells = methods_finn.luts_and_dsps(row, variant.bits, methods.IMAGE_SIZE)
        assert len(cells.split(" / ")) == len(variant.bits) if variant.method else cells == ""


def test_one_kept_estimate_is_what_the_rules_say_today():
    """The others take half a minute."""
    found = methods_finn.needs_of("double_rounding", methods.WIDE, methods.IMAGE_SIZE)
    kept = methods_finn.known(methods.IMAGE_SIZE)["double_rounding"]
    assert found.keys() == kept.keys()
    for bits, needs in found.items():
        # drawn weights and noise: sums of another order of another processor move accumulators
        assert needs["dsp"] == kept[bits]["dsp"]
        assert needs["luts"] == pytest.approx(kept[bits]["luts"], rel=0.02)


def test_a_table_is_written_between_its_marks_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- t -->\nold\n<!-- /t -->\nb\n")
    write_between(page, "t", "new")
    assert page.read_text() == "a\n<!-- t -->\nnew\n<!-- /t -->\nb\n"
    with pytest.raises(ValueError, match=r"page.md: expected one place between <!-- u -->"):
        write_between(page, "u", "new")
    assert "new" in page.read_text()


def test_a_run_made_in_pieces_has_the_sum_of_their_time(tmp_path):
    for seconds in (1.5, 2.0):
        methods.add_seconds(tmp_path / "seconds.json", seconds)
    assert json.loads((tmp_path / "seconds.json").read_text()) == 3.5


@pytest.mark.parametrize(("status", "ends"), [(0, False), (1, False), (143, True)])
def test_a_run_that_fails_does_not_keep_the_next_from_running(
    status, ends, tmp_path, monkeypatch, capsys
):
    """One that was asked to stop does; each is started anew or goes on where it was."""
    commands = []

    def run(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(methods.subprocess, "run", run)
    options = argparse.Namespace(
        output=tmp_path, data_dir="data", epochs=2, threads=1, device="cpu", compile=False
    )
    if ends:
        with pytest.raises(SystemExit):
            methods.train("adabits_centered", 3, options)
    else:
        methods.train("adabits_centered", 3, options)
    assert ("exit status 1" in capsys.readouterr().err) == (status == 1)
    folder = tmp_path / "adabits_centered_s3"
    started = parse_train(commands[0][2:-2])
    assert (started.model.grid, started.data.seed, started.folder) == ("centered", 3, folder)
    folder.mkdir()
    (folder / "checkpoint-0001-0000000.safetensors").touch()
    with contextlib.suppress(SystemExit):
        methods.train("adabits_centered", 3, options)
    assert commands[1][2:4] == ["--resume", str(folder)]
    assert (folder / methods.CPU_SECONDS).is_file()
