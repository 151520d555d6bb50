"""The training recipe end to end on a few tiny steps: outputs and errors."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from recipes import evaluate, run_folder, train
from recipes.errors import CheckpointError
from recipes.networks import FLOAT_BITS, create_network
from recipes.options import parse_train
from recipes.run import create_run
from tests.recipes.runs import rows_of, tiny


class TestRun:
    def test_leaves_everything_a_reader_needs(self, tmp_path, capsys):
        assert train.main(tiny(tmp_path, "--epochs", "2")) == 0
        rows = rows_of(tmp_path)
        assert [row["epoch"] for row in rows] == ["0", "1"]
        assert set(rows[0]) == {
            *("epoch", "train_loss", "train_seconds", "eval_top1_2b", "eval_top1_4b", "lr")
        }
        assert {path.name for path in (tmp_path / "run").iterdir()} == {
            *("args.yaml", "summary.csv", "learning_curves.png", "accuracy_cost.png"),
            *("best.safetensors", "last.safetensors"),
            *("checkpoint-0001-0000000.safetensors", "checkpoint-0002-0000000.safetensors"),
        }
        saved = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
        assert saved["bits"] == [2, 4]
        assert saved["seed"] == 42
        assert set(saved["environment"]) == {"versions", "python", "commit", "hardware"}
        table = capsys.readouterr().out
        assert f"{float(rows[-1]['eval_top1_2b']):.2f}" in table
        assert "GBitOPs" in table

    def test_a_packed_file_evaluates_to_the_same_accuracy(self, tmp_path):
        accuracy = train.train(parse_train(tiny(tmp_path, "--epochs", "1")))
        packed = str(tmp_path / "run" / "last.safetensors")
        assert evaluate.run(evaluate.parse_evaluate([packed])) == accuracy
        only = evaluate.run(evaluate.parse_evaluate([packed, "--bits", "4"]))
        assert only == {4: accuracy[4]}
        assert evaluate.main([packed, "--bits", "6"]) == 2

    def test_every_parameter_is_trained(self, tmp_path):
        run = create_run(parse_train(tiny(tmp_path)))
        before = {name: value.clone() for name, value in run.net.named_parameters()}
        for step, batch in enumerate(run.train.epoch(0)):
            run.step([batch], 0, step, step)
        for name, value in run.net.named_parameters():
            assert not torch.equal(value, before[name]), name

    def test_a_new_run_never_replaces_another_unasked(self, tmp_path, capfd):
        folder = tmp_path / "run"
        folder.mkdir()
        for name in (*run_folder.RESULT_FILES, "notes.txt"):
            (folder / name).write_text("of a former run")
        more = ["--float", "--epochs", "1"]
        assert train.main(tiny(tmp_path, *more)) == 2
        error = capfd.readouterr().err
        assert "ExperimentExistsError" in error
        assert all(option in error for option in ("--resume", "--experiment", "--overwrite"))
        assert {path.read_text() for path in folder.iterdir()} == {"of a former run"}

        assert train.main(tiny(tmp_path, *more, "--overwrite")) == 0
        assert len(rows_of(tmp_path)) == 1
        stale = {path.name for path in folder.iterdir() if b"former run" in path.read_bytes()}
        assert stale == {"notes.txt"}
        assert not parse_train(["-c", str(folder / "args.yaml")]).overwrite

    def test_float_baseline_becomes_an_initial_checkpoint(self, tmp_path):
        accuracy = train.train(parse_train(tiny(tmp_path, "--float", "--epochs", "1")))
        assert set(accuracy) == {FLOAT_BITS}
        weights = tmp_path / "run" / "last.safetensors"
        args = parse_train(tiny(tmp_path, "--initial-checkpoint", str(weights)))
        net = create_network(args, num_classes=10)
        stored = load_file(weights)["layer1.0.conv1.weight"]
        copies = [v for n, v in net.named_parameters() if n.endswith("layer1.0.conv1.weight")]
        assert len(copies) == 2
        assert all(torch.equal(copy, stored) for copy in copies)

    def test_bfloat16_channels_last_and_torchvision_models_run(self, tmp_path):
        more = ["--amp", "bf16", "--channels-last", "--distill-loss", "halved", "--epochs", "1"]
        more += ["--model", "tv:resnet18", "--bits", "2", "--img-size", "16"]
        assert train.main(tiny(tmp_path, *more)) == 0
        assert float(rows_of(tmp_path)[0]["train_loss"]) < 10


class TestErrors:
    @pytest.mark.parametrize(
        ("more", "status", "message"),
        [
            (["--dataset", "mnits"], 2, "UnknownDatasetError"),
            (["--bits", "2", "2"], 2, "BitWidthError"),
            (["--model", "cifar_resnet9"], 2, "cifar_resnet9"),
            (["--num-classes", "3"], 2, "at least the 10 classes"),
            (["--initial-checkpoint", "none.pth"], 1, "none.pth"),
            (["-c", "none.yaml"], 1, "none.yaml"),
            (["--resume", "nowhere"], 1, "nowhere"),
            (["--lr", "1e30"], 1, "finite"),
        ],
    )
    def test_one_line_and_an_exit_status(self, tmp_path, capfd, more, status, message):
        assert train.main(tiny(tmp_path, *more)) == status
        lines = [line for line in capfd.readouterr().err.splitlines() if "Error: " in line]
        assert len(lines) == 1
        assert message in lines[0]

    def test_resume_refuses_another_network(self, tmp_path):
        assert train.main(tiny(tmp_path, "--epochs", "1")) == 0
        args = ["--resume", str(tmp_path / "run"), "--bits", "2", "4", "6"]
        with pytest.raises(CheckpointError, match="another network"):
            train.train(parse_train(args))
