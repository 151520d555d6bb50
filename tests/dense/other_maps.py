"""More networks whose outputs are maps: refinement, cascades, restoration, key points, centres."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.dense.segmentation import CLASSES, cbr, resize


class ResidualUnit(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class RefineNet(nn.Module):
    """Residual units before an activation, fusion of scales, chained pooling."""

    def __init__(self):
        super().__init__()
        self.l1, self.l2 = cbr(3, 8, stride=2), cbr(8, 8, stride=2)
        self.unit1, self.unit2 = ResidualUnit(8), ResidualUnit(8)
        self.fuse1, self.fuse2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.chain = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.clf = nn.Conv2d(8, CLASSES, 3, padding=1)

    def forward(self, x):
        l1 = self.l1(x)
        l2 = self.l2(l1)
        x = self.fuse1(self.unit1(l1)) + resize(self.fuse2(self.unit2(l2)), l1)
        x = top = F.relu(x)
        for conv in self.chain:
            top = conv(F.max_pool2d(top, 5, 1, 2))
            x = x + top
        return self.clf(x)


class ICNet(nn.Module):
    """A cascade of the image at three sizes; a map of each while it trains and after."""

    def __init__(self):
        super().__init__()
        self.sub1, self.sub2 = cbr(3, 4, stride=2), cbr(3, 4, stride=2)
        self.sub4 = nn.Sequential(cbr(3, 4, stride=2), cbr(4, 8))
        self.low, self.middle, self.high = cbr(8, 8, dilation=2), cbr(4, 8, 1), cbr(4, 8, 1)
        self.cff = cbr(8, 8)
        self.cls24, self.cls = nn.Conv2d(8, CLASSES, 1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x):
        half = F.interpolate(x, scale_factor=0.5, mode="bilinear")
        quarter = F.avg_pool2d(x, 4)
        low, middle, high = self.sub4(quarter), self.sub2(half), self.sub1(x)
        x24 = self.cff(resize(self.low(low), middle)) + self.middle(middle)
        x12 = resize(F.relu(x24), high) + self.high(high)
        return [resize(self.cls(F.relu(x12)), x), self.cls24(x24)]


class FCN8s(nn.Module):
    """Scores of three depths are added up."""

    def __init__(self):
        super().__init__()
        self.pool3 = nn.Sequential(cbr(3, 8), nn.MaxPool2d(2), cbr(8, 8), nn.MaxPool2d(2))
        self.pool4 = nn.Sequential(cbr(8, 8), nn.MaxPool2d(2, ceil_mode=True))
        self.fc = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Dropout2d())
        self.score_fr, self.score_pool3 = nn.Conv2d(8, CLASSES, 1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x):
        pool3 = self.pool3(x)
        score = self.score_fr(self.fc(self.pool4(pool3)))
        score = F.interpolate(score, scale_factor=2) + self.score_pool3(pool3)[:, :, 0:, 0:]
        return F.log_softmax(F.interpolate(score, scale_factor=4), 1)


class DnCNN(nn.Module):
    """A denoiser: the noise is subtracted from the image."""

    def __init__(self):
        super().__init__()
        self.dncnn = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), cbr(8, 8), cbr(8, 8)),
            nn.Conv2d(8, 3, 3, padding=1, bias=False),
        )

    def forward(self, x):
        return x - self.dncnn(x)


class EDSR(nn.Module):
    """Super resolution: residual blocks without norms, pixel shuffle."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(ResidualUnit(8), ResidualUnit(8), nn.Conv2d(8, 8, 3, padding=1))
        self.up, self.tail = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = self.head(x - 0.5)
        x = x + self.body(x)
        return self.tail(F.pixel_shuffle(self.up(x), 2)) + 0.5


class Hourglass(nn.Module):
    """Key points: two stacks, of which the second reads the heat maps of the first."""

    def __init__(self):
        super().__init__()
        self.pre = cbr(3, 8, stride=2)
        self.up1, self.low1, self.low2 = cbr(8, 8), cbr(8, 8), cbr(8, 8)
        self.out1, self.merge = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.second, self.out2 = cbr(8, 8), nn.Conv2d(8, 6, 1)

    def forward(self, x):
        x = self.pre(x)
        y = self.up1(x) + F.interpolate(self.low2(self.low1(F.max_pool2d(x, 2))), scale_factor=2)
        first = self.out1(y)
        return [first, self.out2(self.second(x + y + self.merge(first)))]


class Centres(NamedTuple):
    heat: Tensor
    size: Tensor
    offset: Tensor


class CenterNet(nn.Module):
    """Objects as points: three small heads on one map."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(cbr(3, 8, stride=2), cbr(8, 8, stride=2), cbr(8, 8))
        self.deconv = nn.Sequential(
            nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        heads = {"heat": CLASSES, "size": 2, "offset": 2}
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, n, 1))
                for name, n in heads.items()
            }
        )

    def forward(self, x):
        x = self.deconv(self.backbone(x))
        found = {name: head(x) for name, head in self.heads.items()}
        return Centres(found["heat"].sigmoid(), found["size"], found["offset"])


class NestedUNet(nn.Module):
    """U-Net++ with deep supervision: the mean of its maps."""

    def __init__(self):
        super().__init__()
        self.conv00, self.conv10, self.conv20 = cbr(3, 4), cbr(4, 8), cbr(8, 8)
        self.conv01, self.conv11, self.conv02 = cbr(12, 4), cbr(16, 8), cbr(16, 4)
        self.final1, self.final2 = nn.Conv2d(4, CLASSES, 1), nn.Conv2d(4, CLASSES, 1)

    def forward(self, x):
        x00 = self.conv00(x)
        x10 = self.conv10(F.max_pool2d(x00, 2))
        x01 = self.conv01(torch.cat([x00, F.interpolate(x10, scale_factor=2)], 1))
        x20 = self.conv20(F.max_pool2d(x10, 2))
        x11 = self.conv11(torch.cat([x10, F.interpolate(x20, scale_factor=2)], 1))
        x02 = self.conv02(torch.cat([x00, x01, F.interpolate(x11, scale_factor=2)], 1))
        return (self.final1(x01) + self.final2(x02)) / 2
