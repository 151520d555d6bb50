"""The training recipe end to end on a few tiny steps: options, outputs, exact resume, errors."""

import csv

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from recipes import evaluate, options, train

TINY = [
    *("--img-size", "8"),
    *("--subset", "64"),
    *("--batch-size", "32"),
    *("--lr", "0.01"),
    *("--bits", "2", "4"),
    *("--experiment", "run"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny tensors gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the whole process; each test chooses its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny(folder, *more):
    """Arguments of a run of two steps an epoch that writes below ``folder``."""
    return [*TINY, "--output", str(folder), *more]


def rows_of(folder):
    """``summary.csv`` as a list of dictionaries."""
    with open(folder / "run" / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def states_of(folder):
    """Every tensor of the training state."""
    return load_file(folder / "run" / train.STATE_FILE)


class TestOptions:
    def test_yaml_stands_below_the_command_line(self, tmp_path):
        config = tmp_path / "c.yaml"
        config.write_text(
            "lr: 0.5\nbits: [2, 8]\nepochs: 7\namp: true\nno-distill: false\ndataset: ''\n"
            "model_kwargs: {drop_rate: 0.25}\nweight_decay: 1.0e-4\nselection: {2: [0], 8: [0, 1]}"
        )
        args = options.parse_train(["-c", str(config), "--epochs", "9", "--bits", "2", "4", "6"])
        assert (args.lr, args.epochs, args.bits) == (0.5, 9, [2, 4, 6])
        assert (args.amp, args.no_distill, args.dataset) == (True, False, "")
        assert args.model_kwargs == [("drop_rate", 0.25)]
        assert args.weight_decay == 1e-4
        assert args.selection == {2: [0], 8: [0, 1]}

    def test_unknown_keys_are_named(self, tmp_path):
        config = tmp_path / "c.yaml"
        config.write_text("lr: 0.5\nlearning_rate: 1\nepoch: 3\n")
        with pytest.raises(options.OptionError, match=r"unknown \['epoch', 'learning_rate'\]"):
            options.parse_train(["-c", str(config)])

    def test_values_are_checked_as_on_the_command_line(self, tmp_path):
        config = tmp_path / "c.yaml"
        config.write_text("sched: cosinus\n")
        with pytest.raises(SystemExit) as exit_info:
            options.parse_train(["-c", str(config)])
        assert exit_info.value.code == 2

    def test_saved_arguments_read_back(self, tmp_path):
        argv = tiny(tmp_path, "--model-kwargs", "drop_rate=0.1", "--selection", "{2: [0], 4: [1]}")
        args = options.parse_train(argv)
        train.report.save_args(args, tmp_path)
        again = options.parse_train(["-c", str(tmp_path / "args.yaml")])
        again.config = None
        assert vars(again) == vars(args)

    def test_every_config_in_the_repository_parses(self):
        folder = train.Path(train.__file__).parent / "configs"
        configs = sorted(folder.glob("*.yaml"))
        assert len(configs) >= 4
        for config in configs:
            args = options.parse_train(["-c", str(config)])
            assert set(options.read_yaml(config)) <= set(vars(args))


class TestSchedules:
    @pytest.mark.parametrize("index", [0, 1])
    def test_steps_lower_the_rate_after_whole_epochs(self, index):
        args = options.parse_train(["--sched", "step", "--epochs", "4", "--decay-milestones", "2"])
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=(0.1, 1e-4)[index])
        scheduler = train.create_scheduler(args, optimizer, steps=5)
        rates = []
        for epoch in range(4):
            rates.append(optimizer.param_groups[0]["lr"] / (0.1, 1e-4)[index])
            scheduler.step(epoch + 1)
        assert rates == pytest.approx([1, 1, 0.1, 0.1])

    def test_cosine_ends_at_the_smallest_rate(self):
        args = options.parse_train(["--epochs", "4", "--min-lr", "0.01"])
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler = train.create_scheduler(args, optimizer, steps=5)
        scheduler.step(2)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.055)
        scheduler.step(4)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


class TestRun:
    def test_leaves_everything_a_reader_needs(self, tmp_path, capsys):
        assert train.main(tiny(tmp_path, "--epochs", "2")) == 0
        rows = rows_of(tmp_path)
        assert [row["epoch"] for row in rows] == ["0", "1"]
        assert set(rows[0]) == {
            *("epoch", "train_loss", "train_seconds", "eval_top1_2b", "eval_top1_4b", "lr")
        }
        files = {path.name for path in (tmp_path / "run").iterdir()}
        assert files == {
            *("args.yaml", "summary.csv", "learning_curves.png", "accuracy_cost.png"),
            *("best.safetensors", "last.safetensors", train.STATE_FILE),
        }
        saved = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
        assert saved["bits"] == [2, 4]
        assert saved["seed"] == 42
        assert set(saved["environment"]) == {"versions", "python", "commit", "hardware"}
        table = capsys.readouterr().out
        assert f"{float(rows[-1]['eval_top1_2b']):.2f}" in table
        assert "GBitOPs" in table

    def test_a_packed_file_evaluates_to_the_same_accuracy(self, tmp_path):
        accuracy = train.train(options.parse_train(tiny(tmp_path, "--epochs", "1")))
        packed = str(tmp_path / "run" / "last.safetensors")
        assert evaluate.run(evaluate.parse_evaluate([packed])) == accuracy
        only = evaluate.run(evaluate.parse_evaluate([packed, "--bits", "4"]))
        assert only == {4: accuracy[4]}
        assert evaluate.main([packed, "--bits", "6"]) == 2

    def test_every_parameter_is_trained(self, tmp_path):
        run = train.create_run(options.parse_train(tiny(tmp_path)))
        before = {name: value.clone() for name, value in run.net.named_parameters()}
        for images, labels in run.train:
            train.train_step(run, images, labels)
        for name, value in run.net.named_parameters():
            assert not torch.equal(value, before[name]), name

    @pytest.mark.parametrize("kind", [[], ["--float"], ["--sched-on-updates"]])
    def test_a_killed_run_resumes_bit_for_bit(self, tmp_path, monkeypatch, kind):
        more = ["--epochs", "3", "--warmup-epochs", "1", *kind]
        assert train.main(tiny(tmp_path / "whole", *more)) == 0

        save = train.save_progress

        def save_and_die(run, epochs_done, accuracy):
            save(run, epochs_done, accuracy)
            if epochs_done == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(train, "save_progress", save_and_die)
            with pytest.raises(KeyboardInterrupt):
                train.main(tiny(tmp_path / "killed", *more))
        assert train.main(["--resume", str(tmp_path / "killed" / "run")]) == 0

        whole, resumed = states_of(tmp_path / "whole"), states_of(tmp_path / "killed")
        assert whole.keys() == resumed.keys()
        assert any(name.startswith("optimizer0.") for name in whole)
        for name, value in whole.items():
            assert torch.equal(value, resumed[name]), name
        metrics = [
            [{k: v for k, v in row.items() if k != "train_seconds"} for row in rows_of(folder)]
            for folder in (tmp_path / "whole", tmp_path / "killed")
        ]
        assert metrics[0] == metrics[1]

    def test_float_baseline_becomes_an_initial_checkpoint(self, tmp_path):
        accuracy = train.train(options.parse_train(tiny(tmp_path, "--float", "--epochs", "1")))
        assert set(accuracy) == {train.FLOAT_BITS}
        weights = tmp_path / "run" / "last.safetensors"
        args = options.parse_train(tiny(tmp_path, "--initial-checkpoint", str(weights)))
        net = train.create_network(args, num_classes=10)
        stored = load_file(weights)["layer1.0.conv1.weight"]
        copies = [v for n, v in net.named_parameters() if n.endswith("layer1.0.conv1.weight")]
        assert len(copies) == 2
        assert all(torch.equal(copy, stored) for copy in copies)

    def test_bfloat16_channels_last_and_torchvision_models_run(self, tmp_path):
        more = [
            "--amp",
            "--channels-last",
            "--epochs",
            "1",
            "--model",
            "tv:resnet18",
            "--bits",
            "2",
        ]
        assert (
            train.main(tiny(tmp_path, *more, "--img-size", "16", "--distill-loss", "halved")) == 0
        )
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
        with pytest.raises(train.TrainingError, match="another network"):
            train.train(options.parse_train(args))
