"""Options from the command line and from YAML, and the files that hold them."""

from pathlib import Path

import pytest

from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.options import parsers as options
from brevitas_multiquant.recipes.options import yaml_files as yaml_options
from brevitas_multiquant.recipes.run import report
from tests.recipes.runs import tiny


def test_yaml_stands_below_the_command_line(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "lr: 0.5\nbits: [2, 8]\nepochs: 7\namp: true\nno-distill: false\ndataset: ''\n"
        "model_kwargs: {drop_rate: 0.25}\nweight_decay: 1.0e-4\nselection: {2: [0], 8: [0, 1]}"
    )
    args = options.parse_train(["-c", str(config), "--epochs", "9", "--bits", "2", "4", "6"])
    assert (args.lr, args.epochs, args.bits) == (0.5, 9, [2, 4, 6])
    assert (args.amp, args.no_distill, args.dataset) == ("bf16", False, "")
    assert args.model_kwargs == [("drop_rate", 0.25)]
    assert args.weight_decay == 1e-4
    assert args.selection == {2: [0], 8: [0, 1]}


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
    again.config = None
    assert vars(again) == vars(args)


def test_every_config_in_the_repository_parses():
    folder = Path(options.__file__).parents[1] / "configs"
    configs = sorted(folder.glob("*.yaml"))
    assert len(configs) >= 5
    for config in configs:
        args = options.parse_train(["-c", str(config)])
        assert set(yaml_options.read_yaml(config)) <= set(vars(args))
