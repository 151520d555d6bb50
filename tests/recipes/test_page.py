"""The page that a run leaves: what it says, that it needs nothing else, and how it looks."""

import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml
from accelerate import Accelerator

from brevitas_multiquant.recipes import plot, search, train
from brevitas_multiquant.recipes.network import accuracy
from brevitas_multiquant.recipes.network.trainee import Trainee
from brevitas_multiquant.recipes.results import plots
from brevitas_multiquant.recipes.results.confusion import read_confusion, write_confusion
from brevitas_multiquant.recipes.results.report import ARGS_FILE, accuracy_of, read_summary
from brevitas_multiquant.recipes.results.run_folder import PAGE_FILE
from tests.browser import SCHEMES, WIDTHS, open_browser, overflow
from tests.recipes.runs import NAME, tiny

SEARCHES = ("--img-size", "8", "--subset", "64", "--batch-size", "32", "--epochs", "3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    assert train.main(tiny(output, "--epochs", "2")) == 0
    return output / NAME


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two searches."""
    output = tmp_path_factory.mktemp("searched")
    more = ["--budget", "uniform=3", "uniform=4", "--output", str(output), "--experiment", NAME]
    assert search.main([*SEARCHES, *more]) == 0
    return output / NAME


def page_of(folder: Path) -> str:
    return (folder / PAGE_FILE).read_text()


class TestEvaluation:
    NET = Trainee(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)))

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        draw = torch.Generator().manual_seed(0)
        sizes = (16, 5)
        return [
            (
                torch.randn(size, 3, 2, 2, generator=draw),
                torch.randint(0, 4, (size,), generator=draw),
            )
            for size in sizes
        ]

    def test_counts_every_image_once(self) -> None:
        accelerator = Accelerator(cpu=True)
        got = accuracy.evaluation(self.NET, self.batches(), (32,), accelerator, 4)
        expected = Counter(
            (int(label), int(self.NET(image[None]).argmax()))
            for images, labels in self.batches()
            for image, label in zip(images, labels, strict=True)
        )
        for (label, predicted), images in expected.items():
            assert got.confusion[32][label, predicted] == images
        assert got.confusion[32].sum() == 21
        assert got.top1 == accuracy.top1(self.NET, self.batches(), (32,), accelerator)

    def test_many_classes_have_no_matrix(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(accuracy, "MOST_CLASSES", 3)
        accelerator = Accelerator(cpu=True)
        got = accuracy.evaluation(self.NET, self.batches(), (32,), accelerator, 4)
        assert not got.confusion
        assert got.top1 == accuracy.top1(self.NET, self.batches(), (32,), accelerator)

    def test_a_file_keeps_it(self, tmp_path: Path) -> None:
        counts = {bits: torch.randint(0, 3, (5, 5)) for bits in (2, 4)}
        for one in counts.values():
            one[4, 4] = 1
        write_confusion(tmp_path, counts)
        found = read_confusion(tmp_path)
        assert list(found) == [2, 4]
        assert all(torch.equal(found[bits], counts[bits]) for bits in found)
        assert len(read_confusion(tmp_path, 7)[2]) == 7


class TestPage:
    def test_says_what_was_reached(self, trained: Path) -> None:
        text = page_of(trained)
        last = {name: values[-1] for name, values in read_summary(trained).items()}
        for bits, top1 in accuracy_of(last).items():
            assert f"<h3>{bits} bits: {top1:.2f} %</h3>" in text
            assert f"<td>{bits}</td><td>{top1:.2f}</td>" in text
            assert 100 * int(read_confusion(trained)[bits].trace()) / 360 == top1
        for words in ("Training loss", "Accuracy against cost", "layer1.\u200b0.\u200bconv1"):
            assert words in text
        options = yaml.safe_load((trained / ARGS_FILE).read_text())
        assert f"<td>batch size</td><td>{options['batch_size']}</td>" in text
        assert f"<td>versions torch</td><td>{version('torch')}</td>" in text

    def test_needs_nothing_else(self, trained: Path, searched: Path) -> None:
        for page in (page_of(trained), page_of(searched), page_of(searched / "uniform_3")):
            assert not re.search(r"<(script|link|iframe|object)|@import|url\((?!#)", page)
            links = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
            inside = ("#", "data:image/png;base64,", "uniform_")
            assert all(link.startswith(inside) for link in links)

    def test_figures_are_whole_and_follow_the_theme(self, trained: Path) -> None:
        text = page_of(trained)
        figures = [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", text, re.S)]
        assert len(figures) == 4
        ids = re.findall(r' id="([^"]*)"', text)
        assert len(ids) == len(set(ids))
        drawn = "".join(ElementTree.tostring(one, "unicode") for one in figures)
        loose = re.sub(r"var\(--[\w-]+, #\w+\)", "", drawn)
        assert not re.findall(r"(?:fill|stroke): #\w+", loose)

    def test_plot_writes_it_again(self, trained: Path, searched: Path) -> None:
        folders = [trained, searched / "uniform_3", searched]
        before = [page_of(folder) for folder in folders]
        for folder in folders:
            (folder / PAGE_FILE).unlink()
        assert plot.main(list(map(str, folders))) == 0
        assert [page_of(folder) for folder in folders] == before

    def test_plot_writes_figures(self, searched: Path) -> None:
        folder = searched / "uniform_4"
        together = str(searched / "together.pdf")
        assert plot.main([str(folder), "--figures", "svg", "--output", together]) == 0
        assert (searched / "together.pdf").read_bytes().startswith(b"%PDF")
        assert {path.stem for path in folder.glob("*.svg")} == {
            *("training_loss", "validation_top1", "confusion_8b"),
            *("bits_of_weights", "bits_of_activations", "cost_over_budget"),
        }

    def test_plot_names_what_is_no_run(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert plot.main([str(tmp_path)]) == 1
        assert "found no args.yaml in it" in capsys.readouterr().err

    def test_names_of_classes_are_text(self, trained: Path, tmp_path: Path) -> None:
        """And as many as the network has, though the last of them has no image."""
        for path in trained.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        options = yaml.safe_load((tmp_path / ARGS_FILE).read_text())
        names = [f"<b>class {index}" for index in range(11)]
        options["environment"]["preprocessing"]["class_names"] = names
        (tmp_path / ARGS_FILE).write_text(yaml.safe_dump(options))
        assert plot.main([str(tmp_path)]) == 0
        assert "&lt;b&gt;class 10" in page_of(tmp_path) and "<b>" not in page_of(tmp_path)

    def test_many_classes_are_a_figure(self) -> None:
        text = plots.confusion(torch.eye(120, dtype=torch.int64), 4).svg()
        assert "data:image/png;base64," in text and "taken for class" in text

    def test_fits_every_window(self, trained: Path, searched: Path) -> None:
        folders = (trained, searched / "uniform_3", searched)
        with open_browser() as browser:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    size = {"width": width, "height": 900}
                    page = browser.new_page(viewport=size, color_scheme=scheme)
                    for folder in folders:
                        page.goto((folder / PAGE_FILE).as_uri())
                        assert overflow(page) <= 0
                        behind = page.evaluate("getComputedStyle(document.body).backgroundColor")
                        assert behind == {"light": "rgb(255, 255, 255)"}.get(
                            scheme, "rgb(20, 23, 28)"
                        )
                    page.close()
