"""Views: the same tensors, a bit-width of their own. Threads and tasks that share a network."""

import asyncio
import copy
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from brevitas_multiquant import MultiQuantNet, calibrate, cost, extract_subnet
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.errors import BitWidthError, ConcurrentUseError
from brevitas_multiquant.export import check_finn, export_onnx, export_qonnx

RUNS = 1000


def logits_of(net: MultiQuantNet, images: Tensor) -> dict[int, Tensor]:
    """Of every bit-width, by one thread."""
    with torch.no_grad():
        result = {}
        for bits in net.bits:
            with net.at_bits(bits):
                result[bits] = net(images)
        return result


def runs_right(net: MultiQuantNet, images: Tensor, expected: Tensor, times: int) -> int:
    """How many of so many runs give the expected logits."""
    with torch.no_grad():
        return sum(torch.equal(net(images), expected) for _ in range(times))


def state_of(net: MultiQuantNet) -> dict[str, object]:
    """Everything but tensors that a function could leave changed."""
    state: dict[str, object] = {"bits": net.active_bits, "quantized": net._active.quantized}
    for name, module in net.named_modules():
        hooks = (list(module._forward_hooks), list(module._forward_pre_hooks))
        state[name] = (module.training, type(module), hooks, sorted(vars(module)))
    return state


@pytest.mark.parametrize("profile", ["paper", "finn"])
def test_shares_every_tensor(make_net: Callable[..., MultiQuantNet], profile: str) -> None:
    net = make_net(bits=(2, 3, 4), profile=profile)
    view = net.view(3)
    assert type(view) is MultiQuantNet and view is not net
    for tensors in ("named_parameters", "named_buffers"):
        theirs = dict(getattr(view, tensors)())
        ours = dict(getattr(net, tensors)())
        assert list(theirs) == list(ours)
        assert all(theirs[name] is tensor for name, tensor in ours.items())
    assert list(view.state_dict()) == list(net.state_dict())
    assert not {id(m) for m in view.modules()} & {id(m) for m in net.modules()}
    assert (view.bits, view.selection, view.plan, view.source, view.input_shape) == (
        *(net.bits, net.selection, net.plan, net.source),
        net.input_shape,
    )


@pytest.mark.parametrize("profile", ["paper", "finn"])
def test_every_part_looks_at_the_views_own_bit_width(
    make_net: Callable[..., MultiQuantNet], profile: str
) -> None:
    """Also what is held other than as a child: the whole layers of slices, tracked layers."""
    net = make_net(bits=(2, 3, 4), profile=profile)
    view = net.view(2)
    ours = {id(module) for module in net.modules()}

    def held(value: object) -> Iterable[object]:
        if isinstance(value, dict):
            return [inner for item in value.values() for inner in held(item)]
        if isinstance(value, (list, tuple)):
            return [inner for item in value for inner in held(item)]
        return [value]

    for name, module in view.named_modules():
        for key, value in vars(module).items():
            if key == "_graph":  # code, shared
                continue
            for inner in held(value):
                assert inner is not net._active, (name, key)
                assert id(inner) not in ours, (name, key)


def test_a_bit_width_of_its_own(net: MultiQuantNet, images: Tensor) -> None:
    net.eval()
    expected = logits_of(net, images)
    low, high = net.view(2), net.view(4)
    net.set_active_bits(2)
    assert (low.active_bits, high.active_bits, net.view().active_bits) == (2, 4, 2)
    with torch.no_grad():
        assert torch.equal(low(images), expected[2])
        assert torch.equal(high(images), expected[4])
    with low.at_bits(4):
        assert (low.active_bits, net.active_bits) == (4, 2)
    with low.floating():
        assert net._active.quantized


@pytest.mark.parametrize("bits", [3, "4", True, [4]])
def test_unknown_bit_width(net: MultiQuantNet, bits: object) -> None:
    with pytest.raises(BitWidthError, match=r"view: expected one of the bit-widths \[2, 4\]"):
        net.view(bits)  # type: ignore[arg-type]


def test_modes_and_hooks_of_its_own(net: MultiQuantNet, images: Tensor) -> None:
    seen: list[str] = []
    net.stem.register_forward_hook(lambda *_: seen.append("net's"))
    view = net.train().view(2)
    assert view.training
    view.eval()
    view.stem.register_forward_hook(lambda *_: seen.append("view's"))
    assert net.training and all(module.training for module in net.modules())
    with torch.no_grad():
        net(images)
        assert seen == ["net's"]
        view(images)
    assert seen == ["net's", "net's", "view's"]


def test_what_one_learns_the_other_has(
    make_net: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    net = make_net()
    view = net.view(2)
    calibrate(view, [images])
    view.train()(images).square().sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    net.eval(), view.eval()
    assert torch.equal(logits_of(net, images)[2], logits_of(view, images)[2])
    net.double()  # buffers are replaced, in both
    assert {tensor.dtype for tensor in view.buffers() if tensor.is_floating_point()} == {
        torch.float64
    }
    net.float()
    other = make_net()
    calibrate(other, [images])
    view.load_state_dict(other.state_dict())
    assert torch.equal(logits_of(net, images)[4], logits_of(other.eval(), images)[4])


def test_a_view_of_a_view_and_an_independent_copy(net: MultiQuantNet, images: Tensor) -> None:
    net.eval()
    expected = logits_of(net, images)
    view = net.view(4).view(2)
    twin = copy.deepcopy(view)
    assert twin.active_bits == 2
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in net.parameters()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
        assert torch.equal(twin(images), expected[2])


def test_a_forward_that_was_wrapped_stays_behind(net: MultiQuantNet, images: Tensor) -> None:
    """It would run the original, at the original's bit-width."""
    net.eval()
    expected = logits_of(net, images)
    net.forward = net.forward  # type: ignore[method-assign]  # as wrappers do
    branch = net.branches[0]
    branch.forward = branch.forward  # type: ignore[method-assign]
    with torch.no_grad():
        assert torch.equal(net.view(2)(images), expected[2])


def test_two_threads_on_two_views(
    make_net: Callable[..., MultiQuantNet], images: Tensor, tmp_path: Path
) -> None:
    """Right every time, also beside everything that looks at the network meanwhile."""
    net = make_net(bits=(2, 3, 4))
    calibrate(net, [images])
    net.eval().set_active_bits(3)
    expected, before = logits_of(net, images), state_of(net)
    done = threading.Event()

    def look() -> None:
        export_qonnx(net, tmp_path / "q", bits=[2])
        export_onnx(net, tmp_path / "o", bits=[4])
        for bits in islice(cycle(net.bits), 200):
            cost(net)
            check_finn(net)
            extract_subnet(net, bits)
            if done.is_set():
                break

    with ThreadPoolExecutor(4) as pool:
        views = [pool.submit(runs_right, net.view(b), images, expected[b], RUNS) for b in (2, 4)]
        itself = pool.submit(runs_right, net, images, expected[3], RUNS // 4)
        looking = pool.submit(look)
        right = [view.result() for view in (*views, itself)]
        done.set()
        looking.result()
        assert right == [RUNS, RUNS, RUNS // 4]
    assert state_of(net) == before


@pytest.mark.parametrize("profile", ["paper", "finn"])
def test_what_looks_at_a_network_leaves_it_alone_all_the_time(
    make_net: Callable[..., MultiQuantNet], images: Tensor, profile: str, tmp_path: Path
) -> None:
    """Not for a moment: whatever the functions assign on it is noticed at once."""
    net = make_net(bits=(2, 3, 4), profile=profile)
    calibrate(net, [images])
    net.train().set_active_bits(3)
    before = state_of(net)
    owned = {id(module) for module in net.modules()} | {id(net._active)}
    touched: list[str] = []

    def noticing(kind: type) -> Callable[..., None]:
        plain = kind.__setattr__

        def assign(self: object, name: str, value: object) -> None:
            if id(self) in owned:
                touched.append(f"{type(self).__name__}.{name}")
            plain(self, name, value)

        return assign

    def hooked(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        if id(self) in owned:
            touched.append(f"a hook on {type(self).__name__}")
        return register(self, *args, **kwargs)

    register = torch.nn.Module.register_forward_hook
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "register_forward_hook", hooked)
        for kind in (torch.nn.Module, Panel):
            patch.setattr(kind, "__setattr__", noticing(kind))
        cost(net)
        check_finn(net)
        for bits in net.bits:
            extract_subnet(net, bits)
        if profile == "paper":
            export_qonnx(net, tmp_path / "q", bits=[3])
            export_onnx(net, tmp_path / "o", bits=[3])
    assert not touched
    assert state_of(net) == before


class TestOneNetworkInTwoThreads:
    """Without views: a named error, never another bit-width's logits."""

    @pytest.mark.parametrize("first", ["at_bits", "floating"])
    @pytest.mark.parametrize("second", ["at_bits", "set_active_bits", "floating"])
    def test_switched_while_a_block_is_open(
        self, net: MultiQuantNet, first: str, second: str
    ) -> None:
        def switch() -> None:
            if second == "set_active_bits":
                net.set_active_bits(4)
            else:
                with block(net, second, 4):
                    pass

        def block(net: MultiQuantNet, name: str, bits: int):
            return net.at_bits(bits) if name == "at_bits" else net.floating()

        with ThreadPoolExecutor(1) as other, block(net, first, 2):
            with pytest.raises(ConcurrentUseError, match=r"call net\.view\(bits\)"):
                other.submit(switch).result()
            assert net.active_bits == (2 if first == "at_bits" else 4)
        switch()  # nothing is open any more
        assert net._active.quantized

    def test_switched_in_the_middle_of_a_forward(self, net: MultiQuantNet, images: Tensor) -> None:
        net.eval()
        for start, end in ((2, 4), (4, 2)):  # the second one ends in a branch without 2 bits
            net.set_active_bits(start)
            with ThreadPoolExecutor(1) as other:
                hook = net.stem.register_forward_hook(
                    lambda *_, other=other, end=end: other.submit(net.set_active_bits, end).result()
                )
                with (
                    torch.no_grad(),
                    pytest.raises(ConcurrentUseError, match=rf"at {start} bits from stem to head"),
                ):
                    net(images)
                hook.remove()
            assert net.active_bits == end

    def test_switched_there_and_back(self, net: MultiQuantNet, images: Tensor) -> None:
        """The bit-width is the same afterwards; what ran between was not."""

        def there_and_back(*_: object) -> None:
            with net.at_bits(4):
                pass

        net.eval().set_active_bits(2)
        with ThreadPoolExecutor(1) as other:
            net.stem.register_forward_hook(lambda *_: other.submit(there_and_back).result())
            with torch.no_grad(), pytest.raises(ConcurrentUseError, match="switched meanwhile"):
                net(images)

    def test_a_hook_may_look_at_another_bit_width(self, net: MultiQuantNet, images: Tensor) -> None:
        """In the same thread, and back again: nothing is mixed."""
        net.eval()
        expected = logits_of(net, images)

        def look(_module: object, _inputs: object, features: Tensor) -> None:
            with net.at_bits(2):
                net.branches[0](features)

        net.stem.register_forward_hook(look)
        with torch.no_grad():
            assert torch.equal(net(images), expected[4])

    def test_an_error_of_the_forward_itself_stays_what_it_is(self, net: MultiQuantNet) -> None:
        with pytest.raises(RuntimeError, match="channels"):
            net(torch.zeros(1, 5, 8, 8))

    def test_a_copy_made_inside_a_block_is_free(self, net: MultiQuantNet) -> None:
        with net.at_bits(2):
            twin, view = copy.deepcopy(net), net.view()
        for other in (twin, view):
            assert other.active_bits == 2
            with ThreadPoolExecutor(1) as pool:
                pool.submit(other.set_active_bits, 4).result()

    def test_the_backward_of_another_thread_may_switch(self, net: MultiQuantNet) -> None:
        """Devices have threads of their own, in which a recomputed part switches."""
        net._active._owner, net._active._depth = (threading.get_ident() + 1, None), 1

        class Recompute(torch.autograd.Function):
            @staticmethod
            def forward(ctx: object, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: object, grad: Tensor) -> Tensor:
                with net.at_bits(2):
                    return grad * net.active_bits

        x = torch.ones(1, requires_grad=True)
        Recompute.apply(x).backward()
        assert x.grad == 2 and net.active_bits == 4
        assert net._active._owner == (threading.get_ident() + 1, None)


def test_two_tasks_of_an_event_loop(net: MultiQuantNet, images: Tensor) -> None:
    """A block that awaits inside lets another task in: refused by name, views are right."""
    net.eval()
    expected = logits_of(net, images)

    async def within(bits: int) -> Tensor:
        with net.at_bits(bits):
            await asyncio.sleep(0)
            with torch.no_grad():
                return net(images)

    async def on_a_view(bits: int) -> Tensor:
        view = net.view(bits)
        await asyncio.sleep(0)
        with torch.no_grad():
            return view(images)

    async def both(request: Callable) -> list:
        return await asyncio.gather(request(2), request(4), return_exceptions=True)

    low, error = asyncio.run(both(within))
    assert torch.equal(low, expected[2]) and isinstance(error, ConcurrentUseError)
    assert all(
        torch.equal(got, expected[bits])
        for got, bits in zip(asyncio.run(both(on_a_view)), (2, 4), strict=True)
    )
