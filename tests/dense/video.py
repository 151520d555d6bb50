"""Networks of videos and volumes as their authors' repositories write them, made tiny.

All take eight frames of 16 by 16.
"""

import torch
import torch.nn.functional as F
from torch import nn

SHAPE = (1, 3, 8, 16, 16)
CLASSES = 5


def cbr(inputs, outputs, kernel=3, stride=1, groups=1, act=nn.ReLU):
    """Convolution over frames, rows and columns, norm, activation."""
    sizes = (kernel,) * 3 if isinstance(kernel, int) else kernel
    padding = tuple(size // 2 for size in sizes)
    conv = nn.Conv3d(inputs, outputs, sizes, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(outputs), act())


class R3D(nn.Module):
    """Residual blocks; a strided shortcut; the classifier of a pooled vector."""

    def __init__(self):
        super().__init__()
        self.stem = cbr(3, 8, (3, 7, 7), (1, 2, 2))
        self.conv1, self.conv2 = cbr(8, 8), cbr(8, 8, act=nn.Identity)
        self.conv3, self.conv4 = cbr(8, 16, stride=2), cbr(16, 16, act=nn.Identity)
        self.shortcut = cbr(8, 16, 1, 2, act=nn.Identity)
        self.pool, self.fc = nn.AdaptiveAvgPool3d(1), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.conv2(self.conv1(x)))
        x = F.relu(self.shortcut(x) + self.conv4(self.conv3(x)))
        return self.fc(self.pool(x).flatten(1))


class S3D(nn.Module):
    """Factorised convolutions in parallel; the classifier is a convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(cbr(3, 8, (1, 3, 3), (1, 2, 2)), cbr(8, 8, (3, 1, 1)))
        self.one = cbr(8, 4, 1)
        self.three = nn.Sequential(cbr(8, 4, 1), cbr(4, 8, (1, 3, 3)), cbr(8, 8, (3, 1, 1)))
        self.pooled = nn.Sequential(nn.MaxPool3d(3, 1, 1), cbr(8, 4, 1))
        self.classify = nn.Sequential(nn.Dropout(0.1), nn.Conv3d(16, CLASSES, 1))

    def forward(self, x):
        x = F.max_pool3d(self.first(x), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        x = torch.cat([self.one(x), self.three(x), self.pooled(x)], 1)
        x = self.classify(F.avg_pool3d(x, (2, 4, 4), stride=1))
        return x.mean((2, 3, 4))


class X3D(nn.Module):
    """Depthwise convolutions, gates over the whole video, swish."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
            nn.Conv3d(8, 8, (5, 1, 1), padding=(2, 0, 0), groups=8, bias=False),
            *(nn.BatchNorm3d(8), nn.ReLU()),
        )
        self.expand, self.depthwise = cbr(8, 16, 1), cbr(16, 16, groups=16, act=nn.Identity)
        self.squeeze, self.excite = nn.Conv3d(16, 8, 1), nn.Conv3d(8, 16, 1)
        self.project = cbr(16, 8, 1, act=nn.Identity)
        self.head, self.fc = cbr(8, 16, 1), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool3d(y, 1))))
        x = F.relu(x + self.project(F.silu(y * gate.sigmoid())))
        x = F.dropout3d(self.head(x), 0.1, self.training)
        return self.fc(x.mean([-1, -2, -3]))


class SlowFast(nn.Module):
    """Few frames with many channels beside all frames with few."""

    def __init__(self):
        super().__init__()
        self.slow, self.fast = cbr(3, 8, (1, 3, 3), (1, 2, 2)), cbr(3, 4, 3, (1, 2, 2))
        self.lateral = nn.Conv3d(4, 8, (5, 1, 1), (4, 1, 1), (2, 0, 0), bias=False)
        self.slow2, self.fast2 = cbr(16, 8), cbr(4, 4)
        self.projection = nn.Linear(12, CLASSES)

    def forward(self, x):
        slow, fast = self.slow(x[:, :, ::4]), self.fast(x)
        slow = self.slow2(torch.cat([slow, self.lateral(fast)], 1))
        pooled = [F.adaptive_avg_pool3d(y, 1).flatten(1) for y in (slow, self.fast2(fast))]
        return self.projection(torch.cat(pooled, 1))


class UNet3D(nn.Module):
    """Volumes: a class for each voxel, by transposed convolutions and skips."""

    def __init__(self):
        super().__init__()
        self.inc, self.down = nn.Sequential(cbr(3, 4), cbr(4, 4)), cbr(4, 8)
        self.up, self.merge = nn.ConvTranspose3d(8, 4, 2, stride=2), cbr(8, 4)
        self.out = nn.Conv3d(4, CLASSES, 1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down(F.max_pool3d(x1, 2))
        x = F.interpolate(self.up(x2), size=x1.shape[2:], mode="trilinear")
        return self.out(self.merge(torch.cat([x1, x], 1)))
