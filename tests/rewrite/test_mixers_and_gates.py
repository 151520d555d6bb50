"""What adds up positions is refused; gates over maps, and filters for each row, are convolutions.

Each rule with networks that it lets pass beside networks that it stops.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_multiquant import calibrate
from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.quant.layers import CodeLayer
from tests.rewrite.test_own_networks import Net, names_of

CHANNELS, SIDE = 4, 8


class SpatialGate(nn.Module):
    """CBAM: maximum and mean over channels, side by side, a convolution, a sigmoid."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x):
        maps = torch.cat([torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)], dim=1)
        return x * torch.sigmoid(self.conv(maps))


class SpatialGateKept(SpatialGate):
    """The same with dimensions that are kept."""

    def forward(self, x):
        most, _ = x.max(dim=1, keepdim=True)
        maps = torch.cat([most, x.mean(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(maps))


class SpatialGateStacked(SpatialGate):
    """The same by other functions."""

    def forward(self, x):
        maps = torch.stack([x.amax(1), x.mean(1)], dim=1)
        return x * torch.sigmoid(self.conv(maps))


class SpatialGateValues(SpatialGate):
    """The same with a named tuple."""

    def forward(self, x):
        most = torch.max(x, dim=1).values[:, None]
        return x * torch.sigmoid(self.conv(torch.cat([most, x.mean(1)[:, None]], 1)))


class Triplet(SpatialGate):
    """Height takes the place of channels: what is gated are rows, by their maximum and mean."""

    def forward(self, x):
        turned = x.permute(0, 2, 1, 3)
        maps = torch.cat([turned.amax(1, keepdim=True), turned.mean(1, keepdim=True)], 1)
        return (turned * torch.sigmoid(self.conv(maps))).permute(0, 2, 1, 3)


class Coordinates(nn.Module):
    """Coordinate attention: means of rows and of columns, one convolution for both."""

    def __init__(self):
        super().__init__()
        self.both = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.rows = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.columns = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x):
        _b, _c, h, w = x.size()
        rows = x.mean(3, keepdim=True)
        columns = x.mean(2, keepdim=True).permute(0, 1, 3, 2)
        both = torch.relu(self.both(torch.cat([rows, columns], dim=2)))
        rows, columns = torch.split(both, [h, w], dim=2)
        return x * self.rows(rows).sigmoid() * self.columns(columns.transpose(2, 3)).sigmoid()


class Strips(nn.Module):
    """Convolutions of one row and of one column."""

    def __init__(self):
        super().__init__()
        self.row = nn.Conv2d(CHANNELS, CHANNELS, (1, 7), padding=(0, 3), groups=CHANNELS)
        self.column = nn.Conv2d(CHANNELS, CHANNELS, (7, 1), padding=(3, 0), groups=CHANNELS)

    def forward(self, x):
        return x * self.column(self.row(x)).sigmoid()


class AlongHeight(nn.Module):
    """A convolution of one dimension along the height, over channels, and one over a mean map."""

    def __init__(self):
        super().__init__()
        self.over_channels = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)
        self.over_mean = nn.Conv1d(2, 1, 3, padding=1)

    def forward(self, x):
        rows = self.over_channels(x.mean(3))
        maps = torch.stack([x.mean((1, 3)), x.amax((1, 3))], 1)
        return x * rows.unsqueeze(3).sigmoid() * self.over_mean(maps).sigmoid().unsqueeze(3)


class RowsAlone(nn.Module):
    """Every row a sequence of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x):
        b, c, h, w = x.shape
        rows = x.permute(0, 2, 1, 3).reshape(b * h, c, w)
        return self.conv(rows).reshape(b, h, c, w).permute(0, 2, 1, 3)


class DimensionWise(nn.Module):
    """A filter for each row: a depthwise convolution with height in the place of channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(SIDE, SIDE, 3, padding=1, groups=SIDE)
        self.fuse = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x):
        return self.fuse(self.conv(x.transpose(1, 2)).transpose(1, 2))


class ChannelGate(nn.Module):
    """ECA: the channels' means as a sequence."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        return x * self.conv(y).transpose(-1, -2).unsqueeze(-1).sigmoid()


GATES = [
    *(SpatialGate, SpatialGateKept, SpatialGateStacked, SpatialGateValues, Triplet, Coordinates),
    *(Strips, AlongHeight, RowsAlone, DimensionWise, ChannelGate),
]


@pytest.mark.parametrize("gate", GATES)
def test_gates_are_convolutions(make_net, images, gate):
    model = Net(gate())
    net = make_net(model)
    layers = sum(isinstance(m, (nn.Conv1d, nn.Conv2d)) for m in gate().modules())
    assert len(names_of(net.branches[0], CodeLayer)) == layers + 1
    assert net.plan.opaque == []
    calibrate(net, [images])
    with torch.no_grad(), net.eval().floating(), net.at_bits(2):
        assert torch.equal(net(images), model.eval()(images))


class RowsAsChannels(nn.Module):
    """A convolution that adds up rows."""

    def __init__(self, groups=1):
        super().__init__()
        self.conv = nn.Conv2d(SIDE, SIDE, 3, padding=1, groups=groups)

    def forward(self, x):
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class TokenMixer(nn.Module):
    """MLP-Mixer: a linear layer over the positions of every channel."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(SIDE * SIDE, SIDE * SIDE)

    def forward(self, x):
        return self.fc(x.flatten(2)).view(x.shape)


class SpatialGating(nn.Module):
    """gMLP: half of the channels gate the others, position by position."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(SIDE * SIDE, SIDE * SIDE)
        self.out = nn.Conv2d(CHANNELS // 2, CHANNELS, 1)

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        gate = self.fc(right.flatten(2).transpose(1, 2).transpose(1, 2)).view(right.shape)
        return self.out(left * gate)


class GateOfFixedSize(nn.Module):
    """The gate of a map by a linear layer over it: positions are added up."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(SIDE * SIDE, SIDE * SIDE)

    def forward(self, x):
        gate = self.fc(x.mean(1).flatten(1)).sigmoid()
        return x * gate.view(-1, 1, SIDE, SIDE)


class PointwiseOverTokens(nn.Module):
    """A mixer written as a convolution of width one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(SIDE * SIDE, SIDE * SIDE, 1)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.conv(tokens).transpose(1, 2).reshape(x.shape)


class DepthwiseThenRows(nn.Module):
    """Behind a filter for each row, the rows are still rows."""

    def __init__(self):
        super().__init__()
        self.each = nn.Conv2d(SIDE, SIDE, 3, padding=1, groups=SIDE)
        self.all = nn.Conv2d(SIDE, SIDE, 1)

    def forward(self, x):
        return self.all(self.each(x.transpose(1, 2))).transpose(1, 2)


class WeighsPositions(nn.Module):
    """A softmax over positions."""

    def forward(self, x):
        return x * x.flatten(2).softmax(-1).view(x.shape)


class Products(nn.Module):
    """Attention without layers."""

    def forward(self, x):
        tokens = x.flatten(2)
        return (tokens @ tokens.transpose(1, 2) @ tokens).view(x.shape)


class Covariance(nn.Module):
    """Pooling by products of channels."""

    def forward(self, x):
        x = x.flatten(2)
        return torch.bmm(x, x.transpose(1, 2)).unsqueeze(3)


ADDS = "adds up positions where a convolutional network adds up channels"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (RowsAsChannels(), rf"middle\.0\.conv {ADDS}"),
        (RowsAsChannels(groups=2), rf"middle\.0\.conv {ADDS}"),
        (TokenMixer(), rf"middle\.0\.fc {ADDS}"),
        (SpatialGating(), rf"middle\.0\.fc {ADDS}"),
        (GateOfFixedSize(), rf"middle\.0\.fc {ADDS}"),
        (PointwiseOverTokens(), rf"middle\.0\.conv {ADDS}"),
        (DepthwiseThenRows(), rf"middle\.0\.all {ADDS}"),
        (WeighsPositions(), rf"softmax in middle\.0 {ADDS}"),
        (Products(), r"multiply matrices of activations \(attention, or covariance pooling\)"),
        (Covariance(), r"bmm in middle\.0 multiplies matrices .* that pools by averages"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_mixers_are_refused(make_net, module, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        make_net(Net(module))


class Blur(nn.Module):
    """A fixed filter, made for as many channels as the image has."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.register_buffer("line", torch.tensor([1.0, 2.0, 1.0]) / 4)

    def forward(self, x):
        line = self.line.to(x.dtype)
        square = (line[:, None] * line[None, :])[None, None]
        weight = {
            "repeat": lambda: square.repeat(x.shape[1], 1, 1, 1),
            "expand": lambda: square.expand(x.size(1), -1, -1, -1).to(x.device),
            "to": lambda: square.repeat(x.shape[1], 1, 1, 1).to(x),
            "like": lambda: torch.ones_like(x[0, :, :3, :3]).unsqueeze(1) * square,
            "ones": lambda: x.new_ones(x.shape[1], 1, 3, 3) / 9,
            "literal": lambda: torch.full((CHANNELS, 1, 3, 3), 1 / 9),
        }[self.way]()
        return F.conv2d(x, weight, stride=2, padding=1, groups=x.shape[1])


@pytest.mark.parametrize("way", ["repeat", "expand", "to", "like", "ones", "literal"])
def test_a_filter_that_depends_on_shapes_alone_is_a_constant(make_net, images, way):
    model = Net(nn.Conv2d(4, 4, 1), Blur(way))
    net = make_net(model)
    (row,) = [row for row in net.plan.layers if row.kind == "conv2d()"]
    assert (row.part, row.treatment) == ("branch", "float")
    assert row.why.endswith("is a constant: nothing to train")
    calibrate(net, [images])
    with torch.no_grad(), net.eval().floating(), net.at_bits(2):
        assert torch.equal(net(images), model.eval()(images))


@pytest.mark.parametrize("what", ["image", "parameter"])
def test_a_filter_of_values_is_no_constant(make_net, what):
    class Filters(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 1, 1, 1))
            self.register_buffer("blur", torch.full((4, 1, 3, 3), 1 / 9))

        def forward(self, x):
            by = x.mean((0, 2, 3)).view(4, 1, 1, 1) if what == "image" else self.scale
            return F.conv2d(x, self.blur * by, padding=1, groups=4)

    with pytest.raises(UnsupportedModelError, match=r"works on a raw or computed weight"):
        make_net(Net(Filters()))
