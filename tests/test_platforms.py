"""What other platforms refuse: fp64 on a device without it, syncing a file opened for reading."""

import fcntl
import os
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import brevitas_multiquant
from brevitas_multiquant import ModelSource, calibrate, save_packed
from brevitas_multiquant.core.devices import WITHOUT_FP64
from brevitas_multiquant.nn.switchable import scale_and_shift
from brevitas_multiquant.recipes.results.checkpoints import write_tensors
from tests.tiny import TinyNet

PACKAGE = Path(brevitas_multiquant.__file__).parent


class OnDeviceWithoutFp64(Tensor):
    """A tensor that says it is on such a device, and refuses what such a device refuses."""

    @property
    def device(self):
        return torch.device(WITHOUT_FP64[0])

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't")

    def cpu(self):
        return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(out, Tensor) and out.dtype == torch.float64:
            raise TypeError("float64 on a device that has none")
        return out


def trained_norm():
    norm = nn.BatchNorm2d(64)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):
            value.copy_(torch.randn(64, generator=generator))
        norm.running_var.copy_(torch.rand(64, generator=generator) * 3)
    return norm


def test_a_norm_has_the_same_bits_on_a_device_without_fp64():
    norm = trained_norm()
    expected = scale_and_shift(norm)
    norm.running_var = norm.running_var.as_subclass(OnDeviceWithoutFp64)
    with pytest.raises(TypeError, match="Cannot convert a MPS Tensor to float64"):
        norm.running_var.double()
    for found, other in zip(scale_and_shift(norm), expected, strict=True):
        assert torch.equal(found.as_subclass(Tensor), other)


def test_the_root_is_the_one_of_fp64():
    """In fp32 it would be rounded twice: some channels would differ in the last bit."""
    norm = trained_norm()
    scale, shift = scale_and_shift(norm)
    root = (1 / (norm.running_var.double() + norm.eps).sqrt()).float()
    assert torch.equal(scale, root * norm.weight)
    assert torch.equal(shift, norm.bias - norm.running_mean * scale)


def test_fp64_is_used_nowhere_else_on_a_device():
    """Exports move what they read to the CPU first, tables stand there, `core.devices` asks."""
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\.double\(|torch\.float64|torch\.double", path.read_text())
    }
    in_exports = {user for user in users if user.startswith("export/")}
    assert users - in_exports == {
        *("allocation/tabulated.py", "core/devices.py", "rewrite/intake/models.py")
    }


@pytest.fixture
def synced(monkeypatch):
    """How many files were synced, each through a handle that may write, as Windows demands."""
    handles, sync = [], os.fsync

    def checked(handle):
        mode = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        handles.append(handle)
        sync(handle)

    monkeypatch.setattr(os, "fsync", checked)
    return handles


def test_files_are_synced_through_handles_that_may_write(synced, make_net, images, tmp_path):
    net = make_net(TinyNet(), source=ModelSource("own", "tiny", {}))
    calibrate(net, [images])
    save_packed(net, tmp_path / "net.safetensors")
    assert len(synced) == 1
    write_tensors(tmp_path / "tensors.safetensors", net.state_dict())
    assert len(synced) == 2


def test_every_place_that_syncs_is_tested_above():
    files = PACKAGE.rglob("*.py")
    syncing = {str(path.relative_to(PACKAGE)) for path in files if "os.fsync(" in path.read_text()}
    assert syncing == {"storage/packed_file.py", "recipes/results/checkpoints.py"}
