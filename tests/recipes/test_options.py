"""Options from the command line and from YAML, and the files that hold them."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from brevitas_multiquant.recipes.errors import MissingFileError, OptionError
from brevitas_multiquant.recipes.options import train as options
from brevitas_multiquant.recipes.options import yaml_files as yaml_options
from brevitas_multiquant.recipes.options.search import parse_search
from brevitas_multiquant.recipes.results import report
from tests.recipes.runs import tiny


def test_yaml_stands_below_the_command_line(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "lr: 0.5\nbits: [2, 8]\nepochs: 7\namp: true\nno-distill: false\ndataset: ''\n"
        "model_kwargs: {drop_rate: 0.25}\nweight_decay: 1.0e-4\nselection: {2: [0], 8: [0, 1]}"
    )
    read = options.parse_train(["-c", str(config), "--epochs", "9", "--bits", "2", "4", "6"])
    rates, model = read.optimisation, read.model
    assert (rates.lr, rates.epochs, rates.weight_decay, model.bits) == (0.5, 9, 1e-4, [2, 4, 6])
    assert (read.execution.amp, read.objective.no_distill, read.data.dataset) == ("bf16", False, "")
    assert model.model_kwargs == [("drop_rate", 0.25)]
    assert model.selection == {2: [0], 8: [0, 1]}


def test_unknown_keys_are_named(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("lr: 0.5\nlearning_rate: 1\nepoch: 3\n")
    with pytest.raises(OptionError, match=r"unknown \['epoch', 'learning_rate'\]"):
        options.parse_train(["-c", str(config)])


def test_values_are_checked_as_on_the_command_line(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("sched: cosinus\n")
    with pytest.raises(SystemExit) as exit_info:
        options.parse_train(["-c", str(config)])
    assert exit_info.value.code == 2


def test_saved_arguments_read_back(tmp_path):
    argv = tiny(tmp_path, "--model-kwargs", "drop_rate=0.1", "--selection", "{2: [0], 4: [1]}")
    args = options.parse_train(argv)
    report.save_args(args, tmp_path)
    again = options.parse_train(["-c", str(tmp_path / "args.yaml")])
    assert replace(again, config=None) == args


def test_each_option_belongs_to_one_concern():
    concerns = [kind for kinds in options.TITLES.values() for kind in kinds]
    names = [field.name for kind in concerns for field in fields(kind)]
    assert len(names) == len(set(names))
    assert {*names, "config", "print_config"} == set(vars(options.train_parser().parse_args([])))


class TestShippedConfigurations:
    def test_by_name(self):
        read = options.parse_train(["-c", "digits_resnet8", "--epochs", "3"])
        assert (read.data.crop_padding, read.optimisation.epochs) == (2, 3)
        assert options.parse_train(["-c", "digits_resnet8.yaml"]).output == read.output

    def test_a_file_of_that_name_comes_first(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("digits_resnet8", "digits_resnet8.yaml"):
            (tmp_path / name).write_text("lr: 0.375\n")
            assert options.parse_train(["-c", name]).optimisation.lr == 0.375

    @pytest.mark.parametrize("name", ["digits_resnet18", "somewhere/digits_resnet8.yaml"])
    def test_one_that_is_not_there(self, name):
        with pytest.raises(MissingFileError, match=rf"at {name}, found none; did you mean digits_"):
            options.parse_train(["-c", name])

    def test_nothing_like_it(self):
        with pytest.raises(MissingFileError, match=r"the package: cifar100_resnet20, .*, image"):
            options.parse_train(["-c", "zzz"])


def test_every_config_in_the_repository_parses():
    folder = Path(options.__file__).parents[1] / "configs"
    configs = sorted(folder.glob("*.yaml"))
    assert len(configs) >= 5
    for config in configs:
        parse = parse_search if config.name.startswith("search_") else options.parse_train
        args = parse(["-c", str(config)])
        assert set(yaml_options.read_yaml(config)) <= set(args.flat())
