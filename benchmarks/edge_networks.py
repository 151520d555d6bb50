"""Networks as people put them on small hardware, and what becomes of each in the finn profile.

Hand-written, narrow versions of what is usual: classifiers of digits and photographs, keyword
spotting on spectrograms and on raw features, signals, perceptrons, and the building blocks of the
well-known families. `EDGE` is the list; `benchmarks.finn_edge` makes the table of
docs/finn_tables.md.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from benchmarks.edge_blocks import (
    Attention,
    Dense,
    DigitsExample,
    Excitation,
    Fire,
    Ghost,
    Inception,
    Partial,
    Scaled,
    Scales,
    Shuffled,
    TwoStreams,
    UNet,
    conv,
    depthwise,
    pooled,
)
from benchmarks.edge_makers import (
    Make,
    activated,
    between,
    cnv,
    ended,
    inverted,
    keywords,
    lenet,
    perceptron,
    resnet,
    signal,
    vgg,
)

DIGITS, PHOTOS, SPECTROGRAM = (1, 1, 28, 28), (1, 3, 32, 32), (1, 1, 49, 10)


@dataclass(frozen=True)
class EdgeNetwork:
    """One network.

    Args:
        name: in the table.
        make: a new one.
        input_shape: (1, C, H, W).
        advice: words of the refusal that tells what to use instead; None: it maps.
    """

    name: str
    make: Make
    input_shape: tuple[int, ...]
    advice: str | None = None


def _line_end() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5)]


EDGE = [
    EdgeNetwork("LeNet-5, max pools", lenet(nn.MaxPool2d, nn.ReLU), DIGITS),
    EdgeNetwork("LeNet-5, average pools", lenet(nn.AvgPool2d, nn.ReLU), DIGITS),
    EdgeNetwork("LeNet-5, tanh", lenet(nn.AvgPool2d, nn.Tanh), DIGITS),
    EdgeNetwork("digits by functions, log-softmax", DigitsExample, DIGITS),
    EdgeNetwork(
        "digits, two convolutions",
        lambda: nn.Sequential(
            conv(1, 8),
            nn.MaxPool2d(2),
            conv(8, 8),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(392, 10),
        ),
        DIGITS,
    ),
    EdgeNetwork("perceptron 784-64-64-10 (FINN's TFC)", perceptron(784, 64, 64, 64, 10), DIGITS),
    EdgeNetwork(
        "perceptron 784-256-256-10 (FINN's LFC, narrow)", perceptron(784, 256, 256, 256, 10), DIGITS
    ),
    EdgeNetwork("perceptron of 16 features (jets)", perceptron(16, 64, 32, 32, 5), (1, 16, 1, 1)),
    EdgeNetwork(
        "perceptron of 40 features",
        perceptron(40, 32, 2),
        (1, 40, 1, 1),
        "expected at least one layer between",
    ),
    EdgeNetwork("FINN's CNV, narrow", cnv, PHOTOS),
    EdgeNetwork(
        "keyword spotting, depthwise, pool of 25x5",
        keywords(lambda: [nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(16, 12)]),
        SPECTROGRAM,
    ),
    EdgeNetwork(
        "keyword spotting, depthwise, global pool", keywords(lambda: pooled(16, 12)), SPECTROGRAM
    ),
    EdgeNetwork(
        "keyword spotting, two convolutions",
        lambda: nn.Sequential(
            conv(1, 8, (20, 8), (2, 1)),
            nn.MaxPool2d(2),
            conv(8, 8, (10, 4)),
            nn.Flatten(),
            nn.Linear(8 * 13 * 6, 12),
        ),
        SPECTROGRAM,
    ),
    EdgeNetwork(
        "keyword spotting on raw features, Conv1d",
        signal(40, lambda: [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 12)]),
        (1, 40, 1, 64),
    ),
    EdgeNetwork("ECG, Conv1d", signal(2, _line_end), (1, 2, 1, 256)),
    EdgeNetwork(
        "vibration, Conv1d, pool of 4",
        signal(3, lambda: [nn.AvgPool1d(4), nn.Flatten(), nn.Linear(64, 4)]),
        (1, 3, 1, 128),
    ),
    EdgeNetwork(
        "signal without a height", signal(2, _line_end), (1, 2, 256), "put nn.Flatten(2) in front"
    ),
    EdgeNetwork("VGG, max pools", vgg(nn.MaxPool2d(2)), PHOTOS),
    EdgeNetwork("VGG, average pools", vgg(nn.AvgPool2d(2)), PHOTOS),
    EdgeNetwork("VGG without norms", vgg(nn.MaxPool2d(2), norm=False), PHOTOS),
    EdgeNetwork(
        "VGG, adaptive pool of 4x4 to 2x2",
        between(
            lambda: [nn.MaxPool2d(4), nn.AdaptiveAvgPool2d(2), nn.Conv2d(16, 16, 1), nn.ReLU()]
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "VGG, adaptive pool of 1x1 to 7x7",
        lambda: nn.Sequential(
            conv(3, 8, stride=2),
            conv(8, 8),
            nn.MaxPool2d(16),
            nn.AdaptiveAvgPool2d(7),
            nn.Flatten(),
            nn.Linear(392, 16),
            nn.ReLU(),
            nn.Linear(16, 10),
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "VGG, adaptive pool of 2x2 to 7x7",
        lambda: nn.Sequential(
            conv(3, 8, stride=2),
            conv(8, 8),
            nn.MaxPool2d(8),
            nn.AdaptiveAvgPool2d(7),
            nn.Flatten(),
            nn.Linear(392, 16),
            nn.ReLU(),
            nn.Linear(16, 10),
        ),
        PHOTOS,
        "use images of a size that divides evenly",
    ),
    EdgeNetwork(
        "pool of the whole map, AvgPool2d",
        lambda: nn.Sequential(
            conv(3, 8, stride=2),
            conv(8, 16, stride=2),
            nn.AvgPool2d(8),
            nn.Flatten(),
            nn.Linear(16, 10),
        ),
        PHOTOS,
    ),
    EdgeNetwork("pool of the whole map, x.mean((2, 3))", ended(lambda x: x.mean((2, 3))), PHOTOS),
    EdgeNetwork(
        "pool of the whole map, F.avg_pool2d of x.size()",
        ended(lambda x: F.avg_pool2d(x, x.size()[2:]).view(x.size(0), -1)),
        PHOTOS,
    ),
    EdgeNetwork("pool of the whole map, x.amax((2, 3))", ended(lambda x: x.amax((2, 3))), PHOTOS),
    EdgeNetwork(
        "pool of the whole map, nn.AdaptiveMaxPool2d",
        ended(lambda x: F.adaptive_max_pool2d(x, 1).flatten(1)),
        PHOTOS,
    ),
    EdgeNetwork(
        "pool of rows, then of columns",
        ended(lambda x: x.mean(3).mean(2)),
        PHOTOS,
    ),
    EdgeNetwork(
        "pool of a flattened map",
        ended(lambda x: x.flatten(2).mean(2)),
        PHOTOS,
    ),
    EdgeNetwork(
        "pool of a flattened map, the largest",
        ended(lambda x: x.flatten(2).max(2)[0]),
        PHOTOS,
    ),
    EdgeNetwork(
        "1x1 convolution as classifier",
        lambda: nn.Sequential(
            conv(3, 8),
            conv(8, 16, stride=2),
            nn.Conv2d(16, 10, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "softmax at the end",
        lambda: nn.Sequential(conv(3, 8), conv(8, 16, stride=2), *pooled(16), nn.Softmax(1)),
        PHOTOS,
    ),
    EdgeNetwork(
        "sigmoid at the end",
        lambda: nn.Sequential(conv(3, 8), conv(8, 16, stride=2), *pooled(16), nn.Sigmoid()),
        PHOTOS,
    ),
    EdgeNetwork("activation ReLU6", activated(nn.ReLU6), PHOTOS),
    EdgeNetwork("activation LeakyReLU", activated(lambda: nn.LeakyReLU(0.1)), PHOTOS),
    EdgeNetwork("activation PReLU", activated(nn.PReLU), PHOTOS),
    EdgeNetwork("activation ELU", activated(nn.ELU), PHOTOS),
    EdgeNetwork("activation sigmoid", activated(nn.Sigmoid), PHOTOS),
    EdgeNetwork("activation SiLU", activated(nn.SiLU), PHOTOS),
    EdgeNetwork("activation hard swish", activated(nn.Hardswish), PHOTOS),
    EdgeNetwork("activation GELU", activated(nn.GELU), PHOTOS),
    EdgeNetwork("activation Mish", activated(nn.Mish), PHOTOS),
    EdgeNetwork("ResNet, shortcuts by convolution (B)", resnet("B"), PHOTOS),
    EdgeNetwork("ResNet, shortcuts by slices and zeros (A)", resnet("A"), PHOTOS),
    EdgeNetwork("ResNet, shortcuts by pool and convolution (D)", resnet("D"), PHOTOS),
    EdgeNetwork("ResNet, norms first", resnet(first=True), PHOTOS),
    EdgeNetwork(
        "norm behind ReLU",
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 16, 3, 2),
            nn.ReLU(),
            nn.BatchNorm2d(16),
            conv(16, 16),
            *pooled(16),
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "norm behind a max pool",
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            conv(16, 16),
            *pooled(16),
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "MobileNetV1",
        lambda: nn.Sequential(
            conv(3, 8, stride=2),
            depthwise(8, 16),
            depthwise(16, 32, 2),
            depthwise(32, 32),
            *pooled(32),
        ),
        PHOTOS,
    ),
    EdgeNetwork("MobileNetV2", inverted(), PHOTOS),
    EdgeNetwork(
        "MobileNetV3: hard swish, gates by hard sigmoid",
        inverted(nn.Hardswish, nn.Hardsigmoid()),
        PHOTOS,
    ),
    EdgeNetwork("EfficientNet: SiLU, gates by sigmoid", inverted(nn.SiLU, nn.Sigmoid()), PHOTOS),
    EdgeNetwork("EfficientNet-lite", inverted(nn.ReLU6), (1, 3, 48, 32)),
    EdgeNetwork(
        "grouped convolutions (ResNeXt)",
        between(lambda: [conv(16, 16, groups=4), conv(16, 16, 1)]),
        PHOTOS,
    ),
    EdgeNetwork(
        "depthwise, twice the channels",
        between(lambda: [nn.Conv2d(16, 32, 3, 1, 1, groups=16), nn.ReLU()], channels=32),
        PHOTOS,
    ),
    EdgeNetwork(
        "dilated and rectangular kernels",
        between(
            lambda: [
                nn.Conv2d(16, 16, 3, 1, 2, dilation=2),
                nn.ReLU(),
                conv(16, 16, (1, 5)),
                conv(16, 16, (5, 1), (2, 1)),
            ],
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "max pool of 3 over the edge (ceil_mode)",
        between(lambda: [nn.MaxPool2d(3, 2, ceil_mode=True), conv(16, 16)]),
        PHOTOS,
    ),
    EdgeNetwork(
        "zeros around the image (ZeroPad2d)",
        between(lambda: [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(16, 16, 3, 2), nn.ReLU()]),
        PHOTOS,
    ),
    EdgeNetwork(
        "DenseNet",
        between(
            lambda: [
                Dense(16, 8),
                Dense(24, 8),
                nn.Conv2d(32, 16, 1),
                nn.AvgPool2d(2),
                Dense(16, 8),
            ],
            channels=24,
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "SqueezeNet",
        between(lambda: [Fire(16, 4, 8), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(16, 4, 8)]),
        PHOTOS,
    ),
    EdgeNetwork(
        "ShuffleNetV2", between(lambda: [Shuffled(16), Shuffled(16), conv(16, 16, 1)]), PHOTOS
    ),
    EdgeNetwork("GhostNet", between(lambda: [Ghost(16, 15), conv(15, 16)]), PHOTOS),
    EdgeNetwork("Inception", between(lambda: [Inception(16), conv(20, 16)]), PHOTOS),
    EdgeNetwork(
        "cross-stage partial (YOLO body)",
        between(lambda: [Partial(16), nn.MaxPool2d(2), Partial(16)]),
        PHOTOS,
    ),
    EdgeNetwork("two scales put together (YOLO neck)", lambda: Scales("cat"), PHOTOS),
    EdgeNetwork("two scales added (feature pyramid)", lambda: Scales("add"), PHOTOS),
    EdgeNetwork(
        "segmentation, convolutions alone",
        lambda: nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8), nn.Conv2d(8, 4, 1)),
        PHOTOS,
    ),
    EdgeNetwork("segmentation, U-Net", lambda: UNet(4), PHOTOS),
    EdgeNetwork(
        "boxes of a grid (YOLO head)",
        lambda: nn.Sequential(
            *(conv(3, 8), nn.MaxPool2d(2), conv(8, 16), nn.MaxPool2d(2), conv(16, 32)),
            *(nn.MaxPool2d(2), conv(32, 32), nn.Conv2d(32, 18, 1)),
        ),
        (1, 3, 64, 64),
    ),
    EdgeNetwork(
        "squeeze and excitation", between(lambda: [Excitation(16, nn.Sigmoid(), nn.ReLU())]), PHOTOS
    ),
    EdgeNetwork("layer scale", between(lambda: [Scaled(16)]), PHOTOS),
    EdgeNetwork("products of two maps (StarNet)", between(lambda: [TwoStreams(16)]), PHOTOS),
    EdgeNetwork(
        "photograph, not square",
        between(lambda: [nn.MaxPool2d(2), conv(16, 16)], stride=2),
        (1, 3, 96, 64),
    ),
    EdgeNetwork(
        "gate for each position",
        between(lambda: [Attention(16)]),
        PHOTOS,
        "a number for each channel",
    ),
    EdgeNetwork(
        "layer norm",
        between(lambda: [nn.GroupNorm(1, 16), conv(16, 16)]),
        PHOTOS,
        "use nn.BatchNorm2d",
    ),
    EdgeNetwork(
        "bilinear upsampling",
        between(lambda: [nn.Upsample(scale_factor=2, mode="bilinear"), conv(16, 16)]),
        PHOTOS,
        "use mode='nearest'",
    ),
    EdgeNetwork(
        "transposed convolution",
        between(lambda: [nn.ConvTranspose2d(16, 16, 2, 2), nn.ReLU()]),
        PHOTOS,
        "use nn.Upsample(scale_factor=2) and a convolution",
    ),
    EdgeNetwork(
        "reflecting padding",
        between(lambda: [nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), nn.ReLU()]),
        PHOTOS,
        "use zeros",
    ),
]
"""The list; refused networks with words of the advice that they get."""
