"""Wrong command lines: one line, exit status 2 for usage and 1 for failure, nothing on disk."""

import errno
import pickle
import tarfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from brevitas_multiquant.recipes import evaluate, export, train
from brevitas_multiquant.recipes.results import checkpoints
from brevitas_multiquant.recipes.results.checkpoints import checkpoints_in, read_checkpoint
from brevitas_multiquant.recipes.run import tracking
from tests.recipes.runs import NAME, tiny

USAGE = [
    (["--learning-rate", "1"], "unrecognized arguments: --learning-rate"),
    (["--epoch", "1"], "unrecognized arguments: --epoch"),
    (["--epochs", "0"], "--epochs: expected an integer of at least 1, got '0'"),
    (["--epochs", "many"], "--epochs: expected an integer of at least 1, got 'many'"),
    (["--batch-size", "0"], "--batch-size: expected an integer of at least 1"),
    (["--lr", "nan"], "--lr: expected a finite number, got 'nan'"),
    (["--lr", "inf"], "--lr: expected a finite number"),
    (["--lr", "0"], "--lr: expected a number above 0"),
    (["--lr", "fast"], "--lr: expected a finite number, got 'fast'"),
    (["--momentum", "2"], r"--momentum: expected a number in [0, 1], got 2"),
    (["--weight-decay", "-1"], "--weight-decay"),
    (["--smoothing", "1.5"], "--smoothing: expected a number in [0, 1]"),
    (["--hflip", "1.5"], "--hflip: expected a number in [0, 1]"),
    (["--mean", "0", "0"], "--mean: expected 3 arguments"),
    (["--std", "0", "1", "1"], "--std: expected a number above 0"),
    (["--seed", "-1"], "--seed"),
    (["--workers", "-1"], "--workers"),
    (["--sched", "linear"], "--sched: invalid choice: 'linear'"),
    (["--sched", "step"], "--sched step: expected --decay-epochs N"),
    (["--opt", "adamw", "--nesterov"], "--nesterov: expected it with --opt sgd or sgdw, got --opt"),
    (["--opt", "lion", "--momentum", "0.5"], "--momentum 0.5: expected it with --opt sgd or"),
    (["--aa", "rand-m9-inc"], "--aa: expected a policy of timm, as rand-m9-mstd0.5-inc1,"),
    (["--aa", "augment"], "or 3a, got 'augment'"),
    (["--aa", "rand-mstd1.2.3"], "OptionError: --aa rand-mstd1.2.3: timm cannot make this"),
    (["--reprob", "2"], "--reprob: expected a number in [0, 1]"),
    (["--drop-path", "0.1"], "--drop-path 0.1: expected a model with residual paths that it can"),
    (["--amp", "fp8"], "--amp: invalid choice: 'fp8'"),
    (["--log-with", "paper"], "--log-with: invalid choice: 'paper'"),
    (["--merge", "max"], "--merge: invalid choice: 'max'"),
    (["--bits"], "--bits: expected at least one argument"),
    (["--bits", "two"], "--bits: invalid int value: 'two'"),
    (["--bits", "2", "2"], "BitWidthError"),
    (["--bits", "0", "2"], "BitWidthError"),
    (["--bits", "-2"], "BitWidthError"),
    (["--selection", "{2: [0]"], "--selection: expected a YAML value"),
    (["--selection", "{2: [0]}"], "SelectionError"),
    (["--selection", "random"], "Error: "),
    (["--model", "resnet19"], "OptionError: --model resnet19"),
    (["--model", "tv:resnet19"], "OptionError: --model resnet19"),
    (["--model-kwargs", "depth"], "--model-kwargs: expected NAME=VALUE, got 'depth'"),
    (["--model-kwargs", "depth=3"], "OptionError: --model cifar_resnet8"),
    (
        ["--model", "cifar_fcn_resnet8"],
        "expected a classifier, logits (N, classes), got a tensor (1",
    ),
    (["--model-kwargs", "features_only=true", "--model", "test_resnet"], "got list for an image"),
    (["--num-classes", "3"], "at least the 10 classes"),
    (["--warmup-epochs", "3", "--epochs", "3"], "--warmup-epochs: expected fewer than the 3"),
    (["--min-lr", "1"], "--min-lr: expected at most --lr 0.01, got 1.0"),
    (["--mixup", "0.2", "--batch-size", "31"], "expected an even batch size, got 31"),
    (["--bits-per-step", "2"], "--bits-per-step: expected more than 2"),
    (["--bits-per-step", "3"], "at most the 2 of --bits, got 3"),
    (["--float", "--recompute"], "--recompute: expected a multi-branch network, got --float"),
    (["--experiment", "../elsewhere"], "--experiment: expected the name of one folder"),
    (["--dataset", "mnits"], "UnknownDatasetError"),
    (["--dataset", "synthetic"], "--num-classes N beside it"),
    (["-c", "unknown_key.yaml"], "unknown ['learning_rate']"),
    (["-c", "not_yaml.yaml"], "expected YAML"),
    (["-c", "a_list.yaml"], "expected a mapping of option names"),
    (["-c", "binary.yaml"], "expected YAML"),
    (["-c", "wrong_value.yaml"], "--lr: expected a finite number"),
    (["--initial-checkpoint", "garbage.pth"], "OptionError: --initial-checkpoint garbage.pth: "),
]

FAILURES = [
    (["-c", "none.yaml"], "MissingFileError"),
    (["--initial-checkpoint", "none.pth"], "MissingFileError"),
    (["--resume", "nowhere"], "MissingFileError: --resume: expected a run with its args.yaml"),
    (["--resume", "no_run"], "MissingFileError: --resume: expected a run with its args.yaml"),
    (["--resume", "damaged"], "CheckpointError: --resume: all of the 2 checkpoints"),
    (["--dataset", "cifar10"], "MissingFileError: --data-dir"),
    (["--dataset", "", "--data-dir", "nowhere"], "MissingFileError: --data-dir"),
    (["--dataset", "", "--data-dir", "no_run"], "Error: "),
    (["--dataset", "", "--data-dir", "corrupt"], "b/1.png: expected an image"),
    (
        ["--dataset", "", "--data-dir", "other_classes", "--batch-size", "4"],
        "['b'] in training only and ['c'] in validation only",
    ),
    (["--batch-size", "4096"], "DatasetError: expected at least 4096 training images"),
    (["--head", "nowhere"], "UnsupportedModelError"),
    (["--grad-accum-steps", "9"], "DatasetError: --grad-accum-steps"),
    (["--output", "binary.yaml"], "OutputError"),
]


def write_tar(path, labels, spoiled=()):
    """Eight small images, some of them not images."""
    with tarfile.open(path, "w") as tar:
        for index in range(8):
            content = BytesIO(b"no image")
            if index not in spoiled:
                content = BytesIO()
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(content, "PNG")
            info = tarfile.TarInfo(f"{labels[index % 2]}/{index}.png")
            info.size = len(content.getvalue())
            content.seek(0)
            tar.addfile(info, content)


class Canary:
    """Pickled, a file that leaves a trace when it is unpickled."""

    def __reduce__(self):
        return open, ("unpickled", "w")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with the bad files that the command lines name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unknown_key.yaml").write_text("learning_rate: 1\n")
    (tmp_path / "not_yaml.yaml").write_text("lr: [1\n")
    (tmp_path / "a_list.yaml").write_text("- lr\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00lr")
    (tmp_path / "wrong_value.yaml").write_text("lr: fast\n")
    (tmp_path / "garbage.pth").write_bytes(pickle.dumps(Canary(), protocol=2))
    for folder in ("no_run", "damaged", "corrupt", "other_classes"):
        (tmp_path / folder).mkdir()
    (tmp_path / "damaged" / "args.yaml").write_text("img_size: 8\n")
    for step in (0, 1):
        checkpoints.checkpoint_path(tmp_path / "damaged", 1, step).write_bytes(b"half of a file")
    write_tar(tmp_path / "corrupt" / "train.tar", "ab", spoiled=(1,))
    write_tar(tmp_path / "corrupt" / "val.tar", "ab")
    write_tar(tmp_path / "other_classes" / "train.tar", "ab")
    write_tar(tmp_path / "other_classes" / "val.tar", "ac")
    return tmp_path


def snapshot(folder):
    """Every file below a folder and what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def status_of(main, argv):
    """The exit status, whether argparse or the recipe gave it."""
    try:
        return main(argv)
    except SystemExit as stop:
        return stop.code


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("status", "more", "message"),
    [(2, *row) for row in USAGE] + [(1, *row) for row in FAILURES],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_training_refuses(place, capfd, status, more, message):
    before = snapshot(place)
    assert status_of(train.main, [*tiny(place / "out"), *more]) == status
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert snapshot(place) == before


def test_a_missing_tracker_is_named(place, capfd, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert train.main(tiny(place / "out", "--log-with", "wandb")) == 1
    assert "MissingPackageError: --log-with wandb" in capfd.readouterr().err


def test_a_full_disk_keeps_the_last_good_checkpoint(place, capfd, monkeypatch):
    assert train.main(tiny(place / "out", "--epochs", "1")) == 0
    folder = place / "out" / NAME
    (good,) = checkpoints_in(folder)

    def full(tensors, path, metadata):
        path.write_bytes(b"as much as there was room for")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    capfd.readouterr()
    assert train.main(["--resume", str(folder), "--epochs", "2"]) == 1
    assert "OutputError" in (error := capfd.readouterr().err)
    assert "No space left on device" in error
    assert checkpoints_in(folder) == [good]
    assert read_checkpoint(good).values["progress"]["epoch"] == 1
    assert not list(folder.glob("*.partial"))


def test_a_damaged_newest_checkpoint_leaves_the_one_before(place, capfd):
    assert train.main(tiny(place / "out", "--epochs", "2")) == 0
    folder = place / "out" / NAME
    content = bytearray(checkpoints_in(folder)[-1].read_bytes())
    content[-5] ^= 1
    checkpoints_in(folder)[-1].write_bytes(content)
    capfd.readouterr()
    assert train.main(["--resume", str(folder)]) == 0
    assert "the file is damaged; trying the one before" in capfd.readouterr().err
    assert read_checkpoint(checkpoints_in(folder)[-1]).values["progress"]["epoch"] == 2


@pytest.mark.parametrize("recipe", [evaluate, export])
@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        ([], 2, "the following arguments are required: FILE"),
        (
            ["none.safetensors"],
            1,
            "PackedFileError: expected a packed file at none.s",
        ),
        (["binary.yaml"], 1, "PackedFileError"),
        (["garbage.pth"], 1, "PackedFileError"),
        (["binary.yaml", "--bits", "two"], 2, "--bits: invalid int value"),
        (["binary.yaml", "--img-size", "0"], 2, "--img-size"),
        (["binary.yaml", "--nonsense"], 2, "--nonsense"),
    ],
)
def test_evaluation_and_export_refuse(place, capfd, recipe, argv, status, message):
    before = snapshot(place)
    assert status_of(recipe.main, argv) == status
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert snapshot(place) == before
