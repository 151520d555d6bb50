"""A name that is nearly right is answered with the right one, in one or two lines."""

from pathlib import Path

import pytest

from brevitas_multiquant import cli
from brevitas_multiquant.recipes import evaluate, export, search, train

TYPOS = [
    (cli.main, ["inspect", "resnet19"], "did you mean resnet18 or"),
    (cli.main, ["inspect", "torchvision:resnet19"], "did you mean resnet18 or"),
    (cli.main, ["inspect", "resnet18", "--bitz", "2"], "--bitz 2; did you mean --bits"),
    (cli.main, ["inspect", "resnet18", "--bit=2"], "--bit=2; did you mean --bits"),
    (
        cli.main,
        ["inspect", "resnet18", "--method", "adabit"],
        "'bit_mixer'); did you mean adabits",
    ),
    (cli.main, ["check", "cifar_resnet8", "--board", "ZCU140"], "did you mean ZCU104"),
    (train.main, ["--eopchs", "3"], "--eopchs 3; did you mean --epochs"),
    (train.main, ["--model", "cifar_resnet9"], "did you mean cifar_resnet8 or"),
    (train.main, ["--model", "tv:vgg11_nb"], "did you mean vgg11_bn or"),
    (train.main, ["-c", "digit_resnet8"], "did you mean digits_resnet8"),
    (train.main, ["--sched", "cosin"], "did you mean cosine"),
    (train.main, ["--opt", "adanw"], "did you mean adamw"),
    (cli.main, ["predict", "net.safetensors", "a.png", "--tpo", "1"], "did you mean --top"),
    (cli.main, ["predict", "zoo:digits_resnet9", "a.png"], "did you mean digits_resnet8"),
    (cli.main, ["demo", "--prt", "1"], "did you mean --port"),
    (cli.main, ["plot", "run", "--figure", "png"], "did you mean --figures"),
    (cli.main, ["allocate", "cifar_resnet8", "--strategy", "sqrn"], "did you mean sqnr"),
    (search.main, ["--eopchs", "3"], "did you mean --epochs"),
    (evaluate.main, ["net.safetensors", "--data_dir", "x"], "did you mean --data-dir"),
    (export.main, ["net.safetensors", "--formt", "onnx"], "did you mean --format"),
]


@pytest.mark.parametrize(("main", "arguments", "message"), TYPOS)
def test_what_was_meant(main, arguments, message, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stopped:  # of argparse, behind its usage
        code = stopped.code
    assert code in (1, 2)
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1]


def test_a_key_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("eopchs: 3\n")
    assert train.main(["-c", str(tmp_path / "c.yaml")]) == 2
    assert "did you mean epochs" in capsys.readouterr().err


def test_nothing_is_said_where_nothing_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "no_such_model"]) == 2
    assert "did you mean" not in capsys.readouterr().err
