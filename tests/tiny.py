"""Models small enough to count by hand, one for each thing that the rewrite has to get right."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE = (1, 3, 8, 8)


class TinyNet(nn.Module):
    """Stem, one residual block whose tensors have several readers, pooling, classifier.

    Quantizer sites: the stem's output (read by conv1 and shortcut), and conv1's block output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem_bn(self.stem(x)))
        y = self.act(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return self.fc(self.pool(self.act(y)).flatten(1))


class FunctionalDropoutNet(nn.Module):
    """Dropout as functions of the model's own mode, by position and by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x), inplace=True)
        x = F.dropout2d(x, 0.25, self.training)
        x = self.conv2(x).relu_()
        x = x.mean((2, 3))
        x = F.dropout(input=x, p=0.5, training=self.training)
        return self.fc(x)


class InPlaceNet(nn.Module):
    """In-place operations of every spelling right after the stem, which every branch reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.conv3 = nn.Conv2d(4, 4, 1)
        self.act = nn.Hardswish(inplace=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x += 1.0
        x *= 0.5
        x = x.mul_(2.0)
        x = F.relu(x, inplace=True)
        y = x
        x.sub_(0.25)  # changes y as well
        F.hardswish(x, True)
        torch.relu_(x)
        x = self.act(self.conv2(x + y))
        return self.fc(self.conv3(x).relu_().mean((2, 3)))


class BranchingOnData(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if x.sum() > 0:
            x = self.conv2(x)
        return self.fc(x.mean((2, 3)))


class FrozenMode(nn.Module):
    """A module that a trace cannot see through: it looks at its mode when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv2(self.act(self.conv1(x))))
        if self.training:
            x = x + 1.0
        return self.fc(self.act(self.conv3(x)).mean((2, 3)))


class SharedLayerNet(nn.Module):
    """One convolution that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.twice(x))
        return self.fc(torch.relu(self.twice(x)).mean((2, 3)))
