"""The training recipe end to end on a few tiny steps: outputs and errors."""

import re
import signal

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from timm.utils import random_seed

from brevitas_multiquant.recipes import evaluate, train
from brevitas_multiquant.recipes.errors import CheckpointError
from brevitas_multiquant.recipes.network.build import create_network
from brevitas_multiquant.recipes.network.float_task import FLOAT_BITS
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results import run_folder
from brevitas_multiquant.recipes.results.checkpoints import checkpoints_in, read_checkpoint
from brevitas_multiquant.recipes.run import loop, step, tracking
from brevitas_multiquant.recipes.run.create import create_run
from tests.recipes.runs import rows_of, tensors_of, tiny


class TestRun:
    def test_leaves_everything_a_reader_needs(self, tmp_path, capsys):
        assert train.main(tiny(tmp_path, "--epochs", "2")) == 0
        rows = rows_of(tmp_path)
        assert [row["epoch"] for row in rows] == ["1", "2"]
        assert set(rows[0]) == {
            *("epoch", "train_loss", "train_seconds", "eval_top1_2b", "eval_top1_4b", "lr")
        }
        assert {path.name for path in (tmp_path / "run").iterdir()} == {
            *("args.yaml", "summary.csv", "confusion.csv", "report.html"),
            *("best.safetensors", "last.safetensors"),
            *("checkpoint-0001-0000000.safetensors", "checkpoint-0002-0000000.safetensors"),
        }
        saved = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
        assert saved["bits"] == [2, 4]
        assert saved["seed"] == 42
        of_machine = {"versions", "python", "commit", "hardware"}
        assert set(saved["environment"]) == {*of_machine, "preprocessing"}
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
        for index, batch in enumerate(run.train.epoch(0)):
            run.step([batch], 0, index, index)
        for name, value in run.net.named_parameters():
            assert not torch.equal(value, before[name]), name

    @pytest.mark.parametrize("phase", ["mid-epoch", "evaluation"])
    def test_a_run_asked_to_stop_resumes_bit_for_bit(self, tmp_path, monkeypatch, phase):
        """The slow test of kills at any moment is in integration_tests/test_resume.py."""
        more = ["--epochs", "2", "--model-ema", "--mixup", "0.2", "--model-kwargs", "drop_rate=0.1"]
        assert train.main(tiny(tmp_path / "whole", *more)) == 0

        owner, name = (step.Step, "__call__") if phase == "mid-epoch" else (loop, "evaluation")
        plain = getattr(owner, name)

        def interrupted(*args, **kwargs):
            signal.raise_signal(signal.SIGTERM)
            return plain(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, interrupted)
            assert train.main(tiny(tmp_path / "stopped", *more)) == 128 + signal.SIGTERM
        (saved,) = checkpoints_in(tmp_path / "stopped" / "run")
        assert read_checkpoint(saved).values["progress"]["step"] == (
            1 if phase == "mid-epoch" else 2
        )
        assert train.main(["--resume", str(tmp_path / "stopped" / "run")]) == 0

        whole, resumed = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "stopped")
        assert whole.keys() == resumed.keys()
        assert {name.partition(".")[0] for name in whole} == {
            *("net", "ema", "optimizer0", "optimizer1")
        }
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
        metrics = [
            [{k: v for k, v in row.items() if k != "train_seconds"} for row in rows_of(folder)]
            for folder in (tmp_path / "whole", tmp_path / "stopped")
        ]
        assert metrics[0] == metrics[1]

    def test_a_finished_run_resumes_to_its_results(self, tmp_path, capsys):
        assert train.main(tiny(tmp_path, "--epochs", "1")) == 0
        first = capsys.readouterr().out.splitlines()
        assert train.main(["--resume", str(tmp_path / "run")]) == 0
        again = capsys.readouterr().out.splitlines()
        (epoch,) = [index for index, line in enumerate(first) if line.startswith("epoch 1/1")]
        assert again[epoch:] == first[epoch + 1 :]

    def test_a_resumed_run_removes_what_a_killed_one_was_writing(self, tmp_path):
        assert train.main(tiny(tmp_path, "--epochs", "1")) == 0
        folder = tmp_path / "run"
        names = {path.name for path in folder.iterdir()}
        for unfinished in (
            *("args.yaml.partial", "summary.csv.partial", "checkpoint-0001-0000001.safetensors"),
            *(".best.safetensors.k3f_9", ".last.safetensors.k3f_9"),
        ):
            suffix = ".partial" if unfinished.startswith("checkpoint") else ""
            (folder / f"{unfinished}{suffix}").write_bytes(b"half of a file")
        (folder / "notes.txt").write_text("of the user")
        assert train.main(["--resume", str(folder)]) == 0
        assert {path.name for path in folder.iterdir()} == names | {"notes.txt"}

    def test_keeps_as_many_checkpoints_as_asked(self, tmp_path):
        more = ["--epochs", "2", "--recovery-interval", "1", "--checkpoint-hist", "3"]
        assert train.main(tiny(tmp_path, *more)) == 0
        assert [path.name for path in checkpoints_in(tmp_path / "run")] == [
            f"checkpoint-{place}.safetensors"
            for place in ("0001-0000001", "0001-0000002", "0002-0000000")
        ]

    def test_the_moving_average_is_what_is_evaluated_and_kept(self, tmp_path):
        """With a decay of 0 it is the network itself, with 1 the network before training."""
        kept = {}
        for decay in ("0", "1"):
            more = ["--epochs", "1", "--model-ema", "--model-ema-decay", decay]
            assert train.main(tiny(tmp_path / decay, *more)) == 0
            tensors = tensors_of(tmp_path / decay)
            same = [
                torch.equal(value, tensors["net." + name.removeprefix("ema.")])
                for name, value in tensors.items()
                if name.startswith("ema.") and "observed" not in name and "num_batches" not in name
            ]
            kept[decay] = sum(same) / len(same)
        assert kept["0"] == 1.0
        assert kept["1"] < 0.1

    def test_mixup_mixes_images_and_labels(self, tmp_path):
        """Each image by the same share as its label, with the batch in reverse order."""
        run = create_run(parse_train(tiny(tmp_path, "--mixup", "1.0", "--mixup-off-epoch", "3")))
        images, labels = next(run.train.epoch(0))
        random_seed(0)
        mixed, target = run.step._augment(images.clone(), labels, epoch=0)
        other = labels != labels.flip(0)
        (share,) = target.gather(1, labels[:, None])[other].unique().tolist()
        assert 0 < share < 1
        torch.testing.assert_close(mixed, images * share + images.flip(0) * (1 - share))
        assert torch.equal(run.step._augment(images, labels, epoch=3)[1], labels)

    def test_a_dry_run_prints_what_a_run_will_cost_and_writes_nothing(self, tmp_path, capsys):
        assert train.main(tiny(tmp_path, "--dry-run", "--epochs", "5")) == 0
        header, first, second, step_line, total = capsys.readouterr().out.splitlines()[-5:]
        assert header.split() == ["bits", "branches", "MMACs", "GBitOPs", "kB"]
        assert [line.split()[:2] for line in (first, second)] == [["2", "1"], ["4", "2"]]
        found = re.fullmatch(
            r"one step: 32 images, (\S+) s, (\d+) images/s, peak memory (\d+) MB .*", step_line
        )
        assert found, step_line
        assert float(found[1]) > 0
        assert int(found[3]) > 100
        assert total.startswith("5 epochs of 2 steps: ")
        assert not list(tmp_path.iterdir())

    @pytest.mark.filterwarnings("ignore:.*no supported trackers:UserWarning")
    def test_a_tracker_gets_every_step_and_every_epoch(self, tmp_path, monkeypatch):
        logged = []
        monkeypatch.setattr(tracking, "find_spec", lambda name: True)
        monkeypatch.setattr(Accelerator, "init_trackers", lambda *args, **kwargs: None)
        monkeypatch.setattr(
            Accelerator, "log", lambda self, values, step: logged.append((step, values))
        )
        more = ["--log-with", "tensorboard", "--log-interval", "1", "--epochs", "1"]
        assert train.main(tiny(tmp_path, *more)) == 0
        assert [(step, set(values)) for step, values in logged[:2]] == [
            (1, {"loss", "lr", "images_per_second"}),
            (2, {"loss", "lr", "images_per_second"}),
        ]
        assert logged[2][0] == 2
        assert {"train_loss", "eval_top1_2b", "eval_top1_4b"} <= set(logged[2][1])

    def test_tensorboard_files_are_written(self, tmp_path):
        pytest.importorskip("tensorboard")
        more = ["--log-with", "tensorboard", "--log-interval", "1", "--epochs", "1"]
        assert train.main(tiny(tmp_path, *more)) == 0
        assert list((tmp_path / "run").rglob("events.out.tfevents.*"))

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
        assert not parse_train(["-c", str(folder / "args.yaml")]).output.overwrite

    def test_float_baseline_becomes_an_initial_checkpoint(self, tmp_path):
        accuracy = train.train(parse_train(tiny(tmp_path, "--float", "--epochs", "1")))
        assert set(accuracy) == {FLOAT_BITS}
        weights = tmp_path / "run" / "last.safetensors"
        args = parse_train(tiny(tmp_path, "--initial-checkpoint", str(weights)))
        net = create_network(args.model, num_classes=10, img_size=8, seed=0).module
        stored = load_file(weights)["layer1.0.conv1.weight"]
        copies = [v for n, v in net.named_parameters() if n.endswith("layer1.0.conv1.weight")]
        assert len(copies) == 2
        assert all(torch.equal(copy, stored) for copy in copies)

    def test_bfloat16_and_torchvision_models_run(self, tmp_path):
        more = ["--amp", "bf16", "--distill-loss", "halved", "--epochs", "1"]
        # 64 pixels: over maps of one pixel, torch's strided bf16 convolution on the CPU gives a
        # gradient that is not a number about once in 400 calls (torch 2.15, plain convolutions too)
        more += ["--model", "tv:resnet18", "--bits", "2", "--img-size", "64"]
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
