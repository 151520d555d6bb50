"""The comparison of mixed and uniform bits: what it runs, and the table of what is there."""

import json

import pytest

from benchmarks import mixed
from benchmarks.methods import CONFIG
from brevitas_multiquant import Assignment
from brevitas_multiquant.recipes.options.search import parse_search
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results.report import summary_row, write_summary

PARSERS = {mixed.TRAIN: parse_train, mixed.SEARCH: parse_search}


@pytest.mark.parametrize("name", mixed.VARIANTS)
def test_options_of_a_variant(name, tmp_path):
    """All start from one network, under one recipe, within what the same network costs."""
    variant = mixed.VARIANTS[name]
    way, limit = mixed.WAYS[variant.way], mixed.LIMITS[variant.limit]
    if way.strategy is not None:
        Assignment(4, {"layer": (2, 4)}).save(variant.assignment_file(tmp_path, 0))
    argv = ["-c", CONFIG, "--data-dir", "x", *variant.arguments(tmp_path, 0)]
    options = PARSERS[way.recipe](argv)
    model = options.model
    assert (model.method, model.profile) == ("individual", limit.profile)
    assert model.initial_checkpoint.endswith(f"{variant.network}_float_s0/last.safetensors")
    rates, data = options.optimisation, options.data
    assert (rates.lr, rates.opt, rates.warmup_epochs) == (0.1, "sgd", 1)
    assert (data.img_size, data.padding, data.batch_size) == (16, 2, 128)
    assert options.objective.norm_batches == 10
    if way.recipe == mixed.SEARCH:
        (budget,) = options.search.budgets().values()
        assert budget == limit.budget(mixed.NETWORKS[variant.network])
    elif way.strategy is None:
        assert model.bits == [limit.bits]


def test_the_table_has_mean_and_deviation_of_the_last_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(mixed, "KEPT", tmp_path)
    facts = {"file_bytes": 91400, "cpu_seconds": 120.0, "bitops": 27e6, "luts": 8500, "dsp": 20}
    for seed, top in enumerate((70.0, 71.0, 72.0)):
        folder = tmp_path / f"resnet8_luts4_sqnr_s{seed}"
        folder.mkdir()
        rows = [summary_row(epoch, 1.0, 1.0, {4: top - 1 + epoch}, 0.1) for epoch in (0, 1)]
        write_summary(folder, rows)
        (folder / mixed.FACTS).write_text(json.dumps(facts))
    found = {"resnet8_luts4_sqnr": mixed.results_of("resnet8_luts4_sqnr", (0, 1, 2))}
    *_, line = mixed.table(found).splitlines()
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *("cifar_resnet8", "LUTs and DSPs of 4 bits", "sqnr, then trained", "3"),
        *("71.00 ± 1.00", "27.00", "8500", "20", "91.4", "2"),
    ]
    mixed.draw(found, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
