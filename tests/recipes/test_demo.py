"""The demo: what it shows, without a browser and without Gradio; and its page in a browser."""

import re
import sys
from pathlib import Path

import pytest
import torch

from brevitas_multiquant import ModelSource, calibrate, cost, multiquantize
from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.core.preprocessing import Preprocessing
from brevitas_multiquant.recipes import demo
from brevitas_multiquant.recipes.errors import DatasetError, MissingFileError, OptionError
from brevitas_multiquant.recipes.options.demo import parse_demo
from brevitas_multiquant.recipes.predict import predict, read
from brevitas_multiquant.storage import shipped
from tests.browser import WIDTHS, open_browser, overflow

BITS = (2, 4, 8)


@pytest.fixture(scope="module")
def shown() -> demo.Demo:
    torch.manual_seed(0)
    model = ModelSource("timm", "cifar_resnet8").build()
    net = multiquantize(model, BITS, branch_init="shuffle", input_shape=(1, 3, 8, 8))
    calibrate(net, [torch.randn(16, 3, 8, 8)])
    accuracy = {2: 50.5, 4: 60.25, 8: 61.0}
    preprocessing = Preprocessing([0.5] * 3, [0.25] * 3)
    net.image_task = ImageTask(preprocessing, "digits", accuracy, "a test")
    return demo.Demo(net.eval(), parse_demo(["FILE"]))


def test_shows_classes_accuracy_cost_and_layers(shown: demo.Demo, tmp_path: Path) -> None:
    images = shown.examples(tmp_path)
    assert len(images) == 10
    costs = cost(shown.net)
    for bits in BITS:
        seen = shown.look(images[3], bits)
        found = predict(shown.net, read(images[3], shown.constants), [bits])[bits]
        assert seen.bits == bits and list((seen.classes or {}).items()) == found
        facts = dict(re.findall(r"<div><b>(.*?)</b><span>(.*?)</span></div>", seen.html))
        told = {name: value for value, name in facts.items()}
        assert told["bits"] == str(bits)
        assert told["top-1 %"] == f"{shown.net.image_task.accuracy[bits]:.2f}"
        assert told["MBitOPs an image"] == f"{costs[bits].bitops / 1e6:.4g}"
        assert told["kB, this bit-width alone"] == f"{costs[bits].bytes / 1e3:.1f}"
        assert seen.html.count("<tr><td>") == 10  # eight layers in branches, stem and head


def test_every_place_of_the_slider_is_a_bit_width(shown: demo.Demo) -> None:
    assert [shown.nearest(place) for place in (2, 3, 4, 6, 7, 8)] == [2, 2, 4, 4, 8, 8]


def test_says_what_it_lacks(shown: demo.Demo, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DatasetError, match="expected an image"):
        shown.look(str(tmp_path / "text.png"), 4)
    untold = shown.net.image_task
    shown.net.image_task = None
    try:
        with pytest.raises(OptionError, match="how images are prepared"):
            demo.Demo(shown.net, parse_demo(["FILE"]))
    finally:
        shown.net.image_task = untold


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.main(["any.safetensors"]) == 1
    assert 'pip install "brevitas-multiquant[demo]"' in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # Gradio's own
def test_the_page_in_a_browser(shown: demo.Demo, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="needs Gradio, of the extra demo")
    with open_browser() as browser:
        page = demo.page_of(shown, shown.examples(tmp_path))
        _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.looks())
        try:
            for width in WIDTHS:
                tab = browser.new_page(viewport={"width": width, "height": 900})
                asked: list[str] = []
                tab.on("request", lambda request, asked=asked: asked.append(request.url))
                tab.goto(address)
                tab.locator(".facts b", has_text=re.compile("^8$")).wait_for()
                tab.locator("button.gallery-item").nth(3).click()
                tab.locator(".confidence").first.wait_for()
                tab.locator("input[type=range]").press("Home")
                tab.locator(".facts b", has_text=re.compile("^2$")).wait_for()
                assert overflow(tab) <= 0
                outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
                assert not outside
                tab.close()
        finally:
            page.close()


def test_without_a_file_it_is_one_that_comes_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_demo([]).file is None
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(MissingFileError, match="expected FILE, a packed network: none comes"):
        demo.first_shipped()
    for name in ("b", "a"):
        (tmp_path / f"{name}.safetensors").touch()
    assert demo.first_shipped() == "zoo:a"
