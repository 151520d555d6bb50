"""Data that was named is what is read, or refused; a run and an evaluation say what they read."""

import io
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from brevitas_multiquant import Assignment, calibrate, load_packed, multiquantize, save_packed
from brevitas_multiquant.errors import BitWidthError
from brevitas_multiquant.recipes import evaluate, export, train
from brevitas_multiquant.recipes.data import batches as data
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.data.sources import check_splits_differ, split_root
from brevitas_multiquant.recipes.errors import DatasetError, MissingFileError, OptionError
from brevitas_multiquant.recipes.options.data import BUILT_IN
from brevitas_multiquant.recipes.options.train import parse_train
from tests.recipes.runs import tiny

# timm's tar reader never closes its file.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def picture(value):
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


def class_folders(folder, count=8, classes="ab"):
    """Images of one colour, spread over classes."""
    for index in range(count):
        path = folder / classes[index % len(classes)] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(index))


def write_tar(path, count=8, classes="ab"):
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            content = picture(index)
            info = tarfile.TarInfo(f"{classes[index % len(classes)]}/{index}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def folder(tmp_path):
    """Two classes, eight images to train, six to validate."""
    class_folders(tmp_path / "images" / "train")
    class_folders(tmp_path / "images" / "val", count=6)
    return tmp_path / "images"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A network of two classes for images of 8 x 8 pixels, no args.yaml beside it."""
    torch.manual_seed(0)
    return pack(tmp_path_factory.mktemp("packed"), classes=2)


def pack(folder, classes, channels=3, size=8):
    model = timm.create_model("test_resnet", num_classes=classes, in_chans=channels)
    net = multiquantize(model, [2, 4], input_shape=(1, channels, size, size))
    calibrate(net, [torch.randn(2, channels, size, size)])
    return save_packed(net, folder / "net.safetensors")


def sources_of(argv):
    data = parse_train(argv).data
    return data.dataset, data.data_dir


class TestWhatIsRead:
    @pytest.mark.parametrize(
        ("argv", "file", "expected"),
        [
            ([], None, ("digits", None)),
            (["--data-dir", "D"], None, ("", "D")),
            (["--data-dir", "D"], {"lr": 0.1}, ("", "D")),
            ([], {"data_dir": "D"}, ("", "D")),
            (["--data-dir", "D"], {"dataset": "digits"}, ("", "D")),
            (["--data-dir", "D"], {"dataset": "cifar10"}, ("cifar10", "D")),
            (["--data-dir", "D"], {"dataset": "cifar10", "data_dir": "E"}, ("cifar10", "D")),
            (["--dataset", "digits"], {"data_dir": "D"}, ("digits", None)),
            (["--dataset", "digits"], {"dataset": "", "data_dir": "D"}, ("digits", None)),
            (["--dataset", "cifar100"], {"dataset": "", "data_dir": "D"}, ("cifar100", "D")),
            (["--dataset", "wds/x"], None, ("wds/x", None)),
        ],
    )
    def test_a_folder_or_a_data_set(self, tmp_path, argv, file, expected):
        if file is not None:
            config = tmp_path / "c.yaml"
            config.write_text(yaml.safe_dump(file))
            argv = ["-c", str(config), *argv]
        assert sources_of(argv) == expected

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--dataset", "digits", "--data-dir", "D"], "--data-dir D: --dataset digits does not"),
            (["--dataset", "synthetic", "--data-dir", "D"], "--data-dir D: --dataset synthetic"),
            (["--dataset-download"], "--dataset-download: --dataset digits"),
            (["--val-split", "holdout"], "--val-split holdout: --dataset digits"),
            (["--dataset", "cifar10", "--train-split", "x"], "--train-split x: --dataset cifar10"),
            (["--data-dir", "D", "--dataset-download"], "--dataset-download: --dataset ''"),
        ],
    )
    def test_what_a_data_set_does_not_read_is_refused(self, argv, message):
        with pytest.raises(OptionError, match=message):
            parse_train(argv)

    def test_a_file_that_names_both_is_refused(self, tmp_path):
        """As runs were saved that were given a folder and trained on digits."""
        (tmp_path / "c.yaml").write_text("dataset: digits\ndata_dir: D\n")
        with pytest.raises(OptionError, match="--data-dir D: --dataset digits"):
            parse_train(["-c", str(tmp_path / "c.yaml")])

    @pytest.mark.parametrize("more", [[], ["--dry-run"]])
    def test_a_folder_that_is_not_there(self, tmp_path, capfd, more):
        assert train.main(tiny(tmp_path / "out", "--data-dir", str(tmp_path / "no"), *more)) == 1
        error = capfd.readouterr().err
        assert (
            f"MissingFileError: --data-dir: expected an existing folder or tar, got {tmp_path}/no"
            in error
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("resume: somewhere\n", r"got \['resume'\], which only the command line can give"),
            ("dry_run: true\n", r"got \['dry_run'\]"),
            ("model_ema: 0\n", "model_ema: expected true or false, got 0"),
            ("model_ema: 'no'\n", "model_ema: expected true or false, got 'no'"),
            ("hflip: false\n", "hflip: expected a value, got False"),
        ],
    )
    def test_what_a_file_cannot_say_is_refused(self, tmp_path, text, message):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(OptionError, match=message):
            parse_train(["-c", str(tmp_path / "c.yaml")])

    def test_a_switch_that_is_on_by_default_can_be_off_in_a_file(self, tmp_path):
        (tmp_path / "c.yaml").write_text("channels_last: false\npretrained: false\namp: false\n")
        read = parse_train(["-c", str(tmp_path / "c.yaml")])
        how = read.execution
        assert (how.channels_last, read.model.pretrained, how.amp) == (False, False, None)


def options_for(folder, **changed):
    args = parse_train(["--data-dir", str(folder), "--workers", "0", "--img-size", "8"])
    return replace(args.data, **changed)


class TestSplits:
    @pytest.mark.parametrize("name", ["val", "validation", "valid", "eval", "evaluation", "test"])
    def test_usual_names(self, tmp_path, name):
        for part in ("training", name):
            class_folders(tmp_path / part)
        options = options_for(tmp_path)
        assert split_root(options, train=True) == str(tmp_path / "training")
        assert split_root(options, train=False) == str(tmp_path / name)
        assert data.eval_batches(options, Shard()).count == 8

    def test_a_name_that_was_given_is_the_only_one(self, folder):
        class_folders(folder / "holdout", count=4)
        chosen = options_for(folder, val_split="holdout")
        assert data.eval_batches(chosen, Shard()).count == 4
        with pytest.raises(
            MissingFileError, match=r"--val-split other: expected other/ or"
        ) as info:
            data.eval_batches(options_for(folder, val_split="other"), Shard())
        assert "found ['holdout', 'train', 'val']" in str(info.value)
        for wrong in ("train[:10]", ""):
            with pytest.raises(MissingFileError, match="--train-split"):
                data.train_batches(options_for(folder, train_split=wrong), Shard())

    def test_one_split_is_not_the_other(self, folder):
        """Without val/, the folder as a whole would have the training images in it."""
        shutil.rmtree(folder / "val")
        with pytest.raises(MissingFileError, match="--val-split validation: expected validation/"):
            data.eval_batches(options_for(folder), Shard())

    @pytest.mark.parametrize("kind", ["class folders", "tar"])
    def test_images_without_splits_can_be_evaluated_not_trained_on(self, tmp_path, kind):
        place = tmp_path / ("images" if kind == "class folders" else "images.tar")
        (class_folders if kind == "class folders" else write_tar)(place)
        options = options_for(place)
        assert data.eval_batches(options, Shard()).count == 8
        with pytest.raises(DatasetError, match="found images of one split"):
            check_splits_differ(options)

    def test_a_run_refuses_one_split(self, tmp_path, capfd):
        class_folders(tmp_path / "images")
        argv = tiny(tmp_path / "out", "--data-dir", str(tmp_path / "images"))
        assert train.main([*argv, "--batch-size", "4"]) == 1
        assert "validated on what it was trained on" in capfd.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_tars_are_found_before_folders(self, folder):
        write_tar(folder / "val.tar", count=2)
        assert split_root(options_for(folder), train=False) == str(folder / "val.tar")

    def test_a_class_may_be_called_like_a_split(self, tmp_path):
        """What was found is not searched again."""
        for part in ("train", "val"):
            for name in ("train", "val"):
                class_folders(tmp_path / part / name, count=2, classes=["x"])
        assert data.train_batches(options_for(tmp_path, batch_size=1), Shard()).count == 4


class TestHeader:
    def test_a_run_on_a_folder(self, folder, tmp_path, capsys):
        argv = tiny(tmp_path / "out", "--data-dir", str(folder), "--epochs", "2")
        argv[argv.index("--subset") + 1] = "8"
        assert train.main([*argv, "--batch-size", "4"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[:6] == [
            f"data     {folder}/train: 8 images to train",
            f"         {folder}/val: 6 images to validate",
            "images   2 classes, 8 x 8 pixels",
            "model    cifar_resnet8, multiquant, 2, 4 bits, profile paper, weights odd",
            "steps    2 per epoch, 4 in 2 epochs; 4 images per step",
            f"output   {tmp_path}/out/run",
        ]
        saved = yaml.safe_load((tmp_path / "out" / "run" / "args.yaml").read_text())
        assert (saved["dataset"], saved["data_dir"]) == ("", str(folder))

        assert evaluate.main([str(tmp_path / "out" / "run" / "last.safetensors")]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[:2] == [
            f"data     {folder}/val: 6 images",
            "images   2 classes, 8 x 8 pixels",
        ]
        assert printed[3].startswith("network  ") and printed[3].endswith("2, 4 bits")

    def test_a_dry_run_of_a_float_network_on_digits(self, tmp_path, capsys):
        assert train.main(tiny(tmp_path, "--float", "--dry-run", "--epochs", "3")) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[:6] == [
            "data     digits: 64 images to train",
            "         digits: 360 images to validate",
            "images   10 classes, 8 x 8 pixels",
            "model    cifar_resnet8, float",
            "steps    2 per epoch, 6 in 3 epochs; 32 images per step",
            "output   none: a dry run",
        ]


class TestEvaluation:
    def test_data_must_be_named(self, packed, capfd):
        assert evaluate.main([str(packed)]) == 2
        error = capfd.readouterr().err
        assert f"OptionError: --dataset: expected the data to score {packed} on" in error
        assert "--data-dir DIR" in error

    @pytest.mark.parametrize("named", ["command line", "config", "args.yaml"])
    def test_data_may_be_named_anywhere(self, packed, folder, tmp_path, named, capsys):
        argv = [str(shutil.copy(packed, tmp_path))]
        if named == "command line":
            argv += ["--data-dir", str(folder)]
        else:
            file = tmp_path / ("args.yaml" if named == "args.yaml" else "c.yaml")
            file.write_text(yaml.safe_dump({"data_dir": str(folder)}))
            argv += ["-c", str(file)] if named == "config" else []
        assert evaluate.main(argv) == 0
        assert capsys.readouterr().out.startswith(f"data     {folder}/val: 6 images\n")

    def test_the_image_size_is_the_networks(self, packed, folder, capsys):
        assert evaluate.parse_evaluate([str(packed), "--data-dir", "D"]).data.img_size is None
        evaluate.run(evaluate.parse_evaluate([str(packed), "--data-dir", str(folder)]))
        assert "2 classes, 8 x 8 pixels" in capsys.readouterr().out

    def test_an_assignment_is_a_row_too(self, packed, folder, tmp_path, capsys):
        site = load_packed(packed).sites[0]
        mixed, same = Assignment(4, {site: (2, 2)}), Assignment(4, {site: (2, 4)})
        named = [str(packed), "--data-dir", str(folder), "--bits", "4", "--assignment"]
        for one in (mixed, same):
            one.save(tmp_path / f"{one.name}.json")
            named.append(str(tmp_path / f"{one.name}.json"))
        accuracy = evaluate.run(evaluate.parse_evaluate(named))
        assert list(accuracy) == [4, mixed, same] and accuracy[same] == accuracy[4]
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
        assert [row[0] for row in rows] == ["4", mixed.name, same.name]
        assert rows[0][1:] == rows[2][1:]
        with pytest.raises(BitWidthError, match="expected a file that can be read"):
            evaluate.run(evaluate.parse_evaluate([*named, str(tmp_path / "none.json")]))

    @pytest.mark.parametrize(("more", "status"), [([], 2), (["--num-classes", "2"], 2)])
    def test_other_classes_are_refused(self, packed, capfd, more, status):
        """Ten digits, and a network that tells two classes apart."""
        assert evaluate.main([str(packed), "--dataset", "digits", *more]) == status
        assert "classes" in (error := capfd.readouterr().err)
        assert "top-1" not in error

    def test_a_network_of_more_classes_is_scored_where_that_was_asked_for(self, tmp_path, folder):
        net = pack(tmp_path, classes=5)
        named = [str(net), "--data-dir", str(folder)]
        with pytest.raises(OptionError, match=r"expected the 5 classes that .* tells, got 2: .*"):
            evaluate.run(evaluate.parse_evaluate(named))
        accuracy = evaluate.run(evaluate.parse_evaluate([*named, "--num-classes", "5"]))
        assert set(accuracy) == {2, 4}
        (tmp_path / "args.yaml").write_text(
            yaml.safe_dump({"data_dir": str(folder), "num_classes": 5})
        )
        assert evaluate.run(evaluate.parse_evaluate([str(net)])) == accuracy
        # the classes in the file are those of the data in the file
        with pytest.raises(OptionError, match="expected the 5 classes"):
            evaluate.run(evaluate.parse_evaluate([str(net), "--dataset", "digits"]))

    def test_images_are_normalised_as_in_training(self, packed, folder, tmp_path):
        """Whichever images they are; only the command line stands above it."""
        net = str(shutil.copy(packed, tmp_path))
        (tmp_path / "args.yaml").write_text("dataset: digits\n")
        data = evaluate.parse_evaluate([net, "--data-dir", str(folder)]).data
        assert data.dataset == ""
        digits = BUILT_IN["digits"]
        assert (tuple(data.mean), tuple(data.std)) == (digits.mean, digits.std)
        own = evaluate.parse_evaluate([net, "--data-dir", "D", "--mean", "0", "0", "0"]).data
        assert (own.mean, tuple(own.std)) == ([0, 0, 0], digits.std)

    def test_the_device_that_was_named_is_used(self, packed, folder, monkeypatch):
        asked = []

        class Spy(evaluate.Accelerator):
            def __init__(self, **options):
                asked.append(options)
                super().__init__(**options)

        monkeypatch.setattr(evaluate, "Accelerator", Spy)
        argv = [str(packed), "--data-dir", str(folder), "--device"]
        for device in ("cpu", "auto"):
            evaluate.run(evaluate.parse_evaluate([*argv, device]))
        assert asked == [{"cpu": True}, {"cpu": False}]

    def test_a_network_for_grey_images_is_refused(self, tmp_path, folder, capfd):
        net = pack(tmp_path, classes=2, channels=1)
        assert evaluate.main([str(net), "--data-dir", str(folder)]) == 2
        assert "expected a network for images of 3 channels" in capfd.readouterr().err

    def test_a_folder_that_is_not_there(self, packed, capfd):
        assert evaluate.main([str(packed), "--data-dir", "/no/such/folder"]) == 1
        assert "MissingFileError: --data-dir" in capfd.readouterr().err


def test_ties_are_of_one_format(packed, tmp_path, capfd):
    argv = [str(packed), "--format", "onnx", "--allow-ties", "--output", str(tmp_path / "out")]
    assert export.main(argv) == 2
    assert "--allow-ties: expected --format qonnx, got onnx" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_class_is_refused(tmp_path, capfd):
    for part in ("train", "val"):
        class_folders(tmp_path / "images" / part, classes="a")
    argv = tiny(tmp_path / "out", "--data-dir", str(tmp_path / "images"), "--batch-size", "4")
    for more in ([], ["--float"]):
        assert train.main([*argv, *more]) == 2
        assert "--num-classes: expected two classes or more, got 1" in capfd.readouterr().err
    assert not Path(tmp_path / "out").exists()
