"""How a float model is found again: built by name, inferred from a model, refused with a reason."""

import pytest
import timm
import torch
import torchvision

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.core.inferred import builds_same, infer_input_shape, infer_source
from brevitas_multiquant.errors import SourceError


def test_round_trip():
    source = ModelSource("timm", "cifar_resnet8", {"num_classes": 7}, stem="bn1", head="fc")
    assert source.to_dict() == {
        "library": "timm",
        "name": "cifar_resnet8",
        "kwargs": {"num_classes": 7},
        "stem": "bn1",
        "head": "fc",
    }
    assert ModelSource.from_dict(source.to_dict()) == source


@pytest.mark.parametrize(
    ("library", "name"), [("timm", "cifar_resnet8"), ("torchvision", "mobilenet_v3_small")]
)
def test_builds_the_named_model(library, name):
    model = ModelSource(library, name, {"num_classes": 3}).build()
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ModelSource("keras", "resnet18"), r"expected a library of .*, got 'keras'"),
        (ModelSource("timm", "resnet18", {"pretrained": True}), r"arguments that load no weights"),
        (ModelSource("torchvision", "resnet18", {"weights": "DEFAULT"}), r"load no weights"),
        (ModelSource("timm", "resnet18", [1]), r"arguments that load no weights, got \[1\]"),
        (ModelSource("timm", "no_such_net"), r"timm cannot build 'no_such_net'"),
        (ModelSource("torchvision", "no_such_net"), r"torchvision cannot build 'no_such_net'"),
        (ModelSource("timm", "cifar_resnet8", {"wings": 2}), r"cannot build .* \{'wings': 2\}"),
        (ModelSource("own", "MyNet"), r"MyNet is a model of your own: pass it as load_packed"),
    ],
)
def test_what_cannot_be_built(source, message):
    with pytest.raises(SourceError, match=message):
        source.build()


@pytest.mark.parametrize("data", [None, {}, {"library": "timm"}, {"extra": 1}])
def test_bad_written_form(data):
    with pytest.raises(SourceError, match=r"expected the keys \['head', 'kwargs', 'library'"):
        ModelSource.from_dict(data)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [({}, {}), ({"num_classes": 7}, {"num_classes": 7}), ({"in_chans": 1}, {"in_chans": 1})],
)
def test_infers_timm(kwargs, expected):
    model = timm.create_model("cifar_resnet8", **kwargs)
    assert infer_source(model) == ModelSource("timm", "cifar_resnet8", expected)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_resnet", {"out_indices": [1, 4]}),
        ("mobilenetv3_small_050", {"out_indices": [0, 1, 2, 3, 4]}),
        ("xception41", {"out_indices": [2, 4], "feature_cls": "getter"}),
    ],
)
def test_infers_timms_networks_of_features(name, kwargs):
    source = ModelSource("timm", name, {"features_only": True, "num_classes": 0, **kwargs})
    assert infer_source(source.build()) == source


def test_a_network_of_few_features_of_a_large_model_has_no_source():
    """Its reader would build something much larger than the file, and refuses that."""
    with torch.device("meta"):
        assert infer_source(timm.create_model("vgg11", features_only=True)) is None


@pytest.mark.parametrize(
    "name",
    [
        *("vgg11", "vgg16", "alexnet", "squeezenet1_1", "densenet121", "resnet18", "mnasnet1_3"),
        *("shufflenet_v2_x1_5", "mobilenet_v2", "efficientnet_b0", "convnext_tiny"),
    ],
)
@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 7}])
def test_infers_one_of_each_kind_of_torchvisions(name, kwargs):
    """Whatever is published of it: of VGG-16 features without classes, too."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **kwargs)
    assert infer_source(model) == ModelSource("torchvision", name, kwargs)


def test_infers_torchvision():
    model = torchvision.models.mobilenet_v3_small(num_classes=7)
    expected = ModelSource("torchvision", "mobilenet_v3_small", {"num_classes": 7})
    assert infer_source(model) == expected


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("r3d_18", {"num_classes": 7}),
        ("s3d", {}),
        ("lraspp_mobilenet_v3_large", {"num_classes": 7}),
        ("deeplabv3_mobilenet_v3_large", {"aux_loss": True}),
    ],
)
def test_infers_torchvisions_networks_of_videos_and_maps(name, kwargs):
    """Nothing is loaded: neither weights of the network, nor of its backbone."""
    source = ModelSource("torchvision", name, kwargs)
    with torch.device("meta"):
        model = source.build()
    assert infer_source(model) == source


def test_does_not_infer_what_it_would_not_rebuild(tiny):
    assert infer_source(tiny) is None
    changed = timm.create_model("cifar_resnet8")
    changed.fc = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Linear(8, 10))
    assert infer_source(changed) is None


def test_builds_same_compares_names_shapes_and_types():
    model = timm.create_model("cifar_resnet8", num_classes=7)
    assert builds_same(model, ModelSource("timm", "cifar_resnet8", {"num_classes": 7}))
    assert not builds_same(model, ModelSource("timm", "cifar_resnet8"))
    assert not builds_same(model, ModelSource("timm", "no_such_net"))
    relu = timm.create_model("resnet18")
    silu = timm.create_model("resnet18", act_layer="silu")  # the same names and shapes
    assert builds_same(relu, ModelSource("timm", "resnet18"))
    assert not builds_same(silu, ModelSource("timm", "resnet18"))
    assert infer_source(silu) is None


def test_input_shape(tiny):
    assert infer_input_shape(timm.create_model("cifar_resnet8", in_chans=1)) == (1, 1, 32, 32)
    assert infer_input_shape(tiny) == (1, 3, 224, 224)
    assert infer_input_shape(torch.nn.Conv2d(5, 1, 1)) == (1, 5, 224, 224)
    with torch.device("meta"):
        video = torchvision.models.video.r3d_18()
    assert infer_input_shape(video) == (1, 3, 16, 112, 112)


def test_modules_to_keep_are_written_only_where_there_are_some():
    """Files of networks without any are as they were."""
    plain, kept = ModelSource("own", "Net"), ModelSource("own", "Net", keep=("blocks.1",))
    assert set(plain.to_dict()) == {"library", "name", "kwargs", "stem", "head"}
    assert kept.to_dict() == {**plain.to_dict(), "keep": ["blocks.1"]}
    assert ModelSource.from_dict(kept.to_dict()) == kept
    for wrong in ("blocks.1", [1], None):
        with pytest.raises(SourceError, match="names of modules to keep"):
            ModelSource.from_dict({**plain.to_dict(), "keep": wrong})
