"""Searches that draw assignments: their rules written out, their resumption, what they leave."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical

from brevitas_multiquant import Assignment, calibrate, cost, extract_subnet, multiquantize
from brevitas_multiquant.allocation import Budget, SampledSearch, allocate
from brevitas_multiquant.allocation.policies import Metropolis, Reinforce
from brevitas_multiquant.errors import BudgetError, ConfigError
from tests.tiny import IMAGE, TinyNet

MANY = (2, 3, 4, 6, 8)
CANDIDATES = ((2, 4, 8), (4, 8), (2, 3, 4))
LABELS = torch.tensor([0, 1, 2, 3])
both = pytest.mark.parametrize("policy", ["fliqs", "amed"])


def test_reinforce_against_torch() -> None:
    """Categoricals of ``torch.distributions``, Adam of ``torch.optim``, over thirty steps."""
    policy = Reinforce(CANDIDATES, beta=2.0, rate=0.1, entropy=0.3, uniform_share=0.2)
    tables = [torch.zeros(len(of), requires_grad=True) for of in CANDIDATES]
    optimizer = torch.optim.Adam(tables, lr=0.1)
    baseline, numbers = None, torch.Generator().manual_seed(0)
    for step in range(30):
        policy.done.fill_(step / 30)
        policy.draw(torch.Generator().manual_seed(step))
        loss, ratio = torch.rand((), generator=numbers), float(torch.rand((), generator=numbers))
        policy.learn(loss, 2 * ratio, ratio)

        reward = -loss - 2.0 * abs(2 * ratio - 1)
        baseline = reward if baseline is None else 0.99 * baseline + 0.01 * reward
        if step / 30 < 0.2:
            assert not policy.table.any()
            continue
        rows = [Categorical(logits=table) for table in tables]
        drawn = [row.log_prob(index) for row, index in zip(rows, policy.chosen, strict=True)]
        weight = 0.3 * (step / 30 - 0.2) / 0.8
        objective = -(reward - baseline) * torch.stack(drawn).mean()
        objective = objective + weight * torch.stack([row.entropy() for row in rows]).mean()
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    for row, table in zip(policy.table, tables, strict=True):
        # another order of the same fp32 operations, thirty times
        torch.testing.assert_close(row[: len(table)], table.detach(), rtol=1e-4, atol=1e-5)
    assert not policy.table[1, 2:].any()


def test_what_is_drawn_has_the_preferences() -> None:
    policy = Reinforce(CANDIDATES, uniform_share=0.5)
    policy.table.copy_(torch.tensor([[1.0, 0, -1], [0.5, 0, 9], [0, 0, 2]]))
    counts, generator = torch.zeros(3, 3), torch.Generator().manual_seed(0)
    for done, expected in ((0.2, torch.tensor([1 / 3, 1 / 2, 1 / 3])), (0.6, None)):
        policy.done.fill_(done)
        counts.zero_()
        for _ in range(4000):
            policy.draw(generator)
            counts[torch.arange(3), policy.chosen] += 1
        assert counts[1, 2] == 0
        shares = counts[:, 0] / 4000
        wanted = policy.preferences()[:, 0] if expected is None else expected
        assert (shares - wanted).abs().max() < 0.04  # five standard deviations of 4000 draws


def test_metropolis_against_its_rule() -> None:
    """Scores in a dictionary, one bit-width after another."""
    policy = Metropolis(CANDIDATES, temperature=0.5, period=3, loss_share=0.25)
    scores = [dict.fromkeys(of, 0.0) for of in CANDIDATES]
    now, reference, period = [of[-1] for of in CANDIDATES], None, []
    numbers = torch.Generator().manual_seed(0)
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        policy.draw(generator)
        if step and step % 3 == 0:
            rows = []
            for of, row in zip(CANDIDATES, scores, strict=True):
                total = sum(math.exp(row[bits] / 0.5) for bits in of)
                rows.append({bits: math.exp(row[bits] / 0.5) / total for bits in of})
            generator = torch.Generator().manual_seed(step)
            padded = torch.zeros(3, 3)
            for index, row in enumerate(rows):
                padded[index, : len(row)] = torch.tensor(list(row.values()))
            proposed = torch.multinomial(padded, 1, generator=generator)[:, 0].tolist()
            chances = torch.rand(3, 1, generator=generator)[:, 0].tolist()
            for index, (of, row) in enumerate(zip(CANDIDATES, rows, strict=True)):
                other = of[proposed[index]]
                if chances[index] < min(1.0, row[other] / row[now[index]]):
                    now[index] = other
        assert policy.bits() == now
        loss, ratio = torch.rand((), generator=numbers) + 0.1, sum(now) / 20
        policy.learn(loss, 0.0, ratio)
        period.append(float(loss))
        if len(period) == 3:
            mean, period = sum(period) / 3, []
            reference = mean if reference is None else reference
            zeta = 0.25 * mean / reference + 0.75 * ratio
            for row, bits in zip(scores, now, strict=True):
                row[bits] += math.log10(1 / zeta)
    for row, own in zip(policy.table, scores, strict=True):
        # sums of twenty logarithms in fp32
        torch.testing.assert_close(
            row[: len(own)], torch.tensor(list(own.values())), atol=1e-5, rtol=1e-4
        )


def individual(images: Tensor, **options: Any) -> Any:
    torch.manual_seed(0)
    net = multiquantize(TinyNet(), [8], method="individual", input_shape=IMAGE, **options)
    calibrate(net, [images])
    return net.train()


def one_step(search: SampledSearch, optimizer: Any, images: Tensor, step: int) -> None:
    optimizer.zero_grad()
    search.at(0, 1, step, seed=3)
    search(images, LABELS)["loss"].backward()
    optimizer.step()
    search.update_bits(step / 40)


def made(net: Any, policy: str, **options: Any) -> SampledSearch:
    return SampledSearch(net, Budget(ratio=0.3), policy=policy, candidates=MANY, **options)


@both
def test_resumed_to_the_bit(images: Tensor, policy: str) -> None:
    options = {"period": 3} if policy == "amed" else {}
    search = made(individual(images), policy, options=options)
    optimizer = torch.optim.SGD(search.net.model_parameters(), 0.05)
    for step in range(20):
        if step == 13:
            state = copy.deepcopy(search.net.state_dict())
        one_step(search, optimizer, images, step)
    again = made(individual(images), policy, options=options)
    again.net.load_state_dict(state)
    optimizer = torch.optim.SGD(again.net.model_parameters(), 0.05)
    for step in range(13, 20):
        one_step(again, optimizer, images, step)
    first, second = search.net.state_dict(), again.net.state_dict()
    assert first.keys() == second.keys() and any("policy" in name for name in first)
    different = [
        name
        for name in first
        if not torch.equal(first[name].nan_to_num(), second[name].nan_to_num())
    ]
    assert different == []
    assert search.settle().to_dict() == again.settle().to_dict()


@both
def test_a_step_is_one_of_the_drawn_network(images: Tensor, policy: str) -> None:
    """Loss and gradients are those of a network that was built with these bits."""
    net = individual(images)
    search = made(net, policy, options={"period": 1} if policy == "amed" else {})
    optimizer = torch.optim.SGD(net.model_parameters(), 0.0)
    for step in range(3):
        one_step(search, optimizer, images, step)
    net.zero_grad()
    search.at(0, 1, 3)
    out = search(images, LABELS)
    out["loss"].backward()
    drawn = {width: int(bits.value) for width, bits in search.widths.shared.items()}
    assert set(drawn.values()) != {8}
    assignment = search.problem.assignment(drawn, 8)
    twin = multiquantize(TinyNet(), assignment, input_shape=IMAGE).train()
    own = {k: v for k, v in net.state_dict().items() if k in twin.state_dict()}
    twin.load_state_dict(own)
    loss = F.cross_entropy(twin(images), LABELS)
    loss.backward()
    # values in place of codes: sums of 54 products in another order
    torch.testing.assert_close(out["loss"], loss, rtol=1e-4, atol=1e-5)
    gradients = {name: p.grad for name, p in net.named_parameters()}
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4)
    assert gradients["policy.carrier"] == out["loss"].detach()
    assert all(p is not search.policy.carrier for p in net.model_parameters())


@both
def test_batches_of_a_step_share_what_is_drawn(images: Tensor, policy: str) -> None:
    """Their mean loss reaches the policy, as the mean of gradients does."""
    search = made(individual(images), policy)
    search.at(0, 1, 0)
    losses = []
    for half in (slice(0, 2), slice(2, 4)):
        loss = search(images[half], LABELS[half])["loss"]
        (0.5 * loss).backward()
        losses.append(loss.item())
    assert search.policy.carrier.grad == pytest.approx(sum(losses) / 2, rel=1e-6)


@both
@pytest.mark.filterwarnings("ignore::brevitas_multiquant.errors.UniformBitsWarning")
def test_what_it_settles_at(images: Tensor, policy: str) -> None:
    search = made(individual(images), policy)
    optimizer = torch.optim.SGD(search.net.model_parameters(), 0.05)
    for step in range(40):
        one_step(search, optimizer, images, step)
    means = search.bits()
    assert all(2 <= bits <= 8 for bits in means.values())
    settled = search.settle()
    net, found = search.net, settled.allocation
    assert found.strategy == policy and found.cost <= found.budget
    assert net.assignment == found.assignment and cost(net)[8].bitops == found.cost
    assert not search.is_open and "policy" not in dict(net.named_modules())
    one_step(search, optimizer, images, 40)  # plain training from here on
    net.eval()
    with torch.no_grad():
        assert torch.equal(extract_subnet(net, 8)(images), net(images))
    other = made(individual(images), policy)
    other.restore(settled.to_dict())
    assert other.net.assignment == net.assignment


def test_a_cheaper_half_is_preferred(images: Tensor) -> None:
    """With nothing but the cost to learn from, assignments near the budget win."""
    search = made(
        individual(images),
        "fliqs",
        options={"beta": 5.0, "rate": 0.3, "uniform_share": 0.0},
        criterion=lambda logits, labels: 0 * logits.sum(),
    )
    optimizer = torch.optim.SGD(search.net.model_parameters(), 0.0)
    for step in range(40):
        one_step(search, optimizer, images, step)
    assert abs(search.ratio() - 1) < 0.5


@pytest.mark.parametrize("strategy", ["fliqs", "amed"])
@pytest.mark.parametrize("of", ["bytes", "custom", "luts"])
def test_any_cost_model(images: Tensor, strategy: str, of: str) -> None:
    budgets: dict[str, Any] = {
        "bytes": {"uniform": 3, "of": "bytes"},
        "custom": {"ratio": 0.5, "of": "custom", "cost": lambda layer, w, a: w * w + a},
        "luts": {"luts": 1920, "target_fps": 1000, "dsp_price": 55},
    }
    if of == "luts" and strategy == "amed":
        pytest.skip("one of them is enough: they see terms alone")
    found = allocate(
        TinyNet().eval(),
        Budget(**budgets[of]),
        strategy=strategy,
        options={"steps": 12},
        data=[(images, LABELS)],
        candidates=(2, 3, 4),
        input_shape=IMAGE,
    )
    assert found.cost <= found.budget and found.unit == of
    if of == "bytes":
        assert {pair.activation for pair in found.assignment.values()} == {4}  # they cost nothing


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"policy": "flics"}, ConfigError, "policy: expected one of .*did you mean 'fliqs'"),
        ({"options": {"betas": 1}}, ConfigError, "options of 'fliqs': .*betas"),
        ({"options": {"beta": -1}}, ConfigError, "beta: expected a number from 0 on, got -1"),
        ({"options": {"rate": 0}}, ConfigError, "rate: expected a positive number, got 0"),
        ({"policy": "amed", "options": {"period": 0}}, ConfigError, "period: expected a positive"),
        (
            {"policy": "amed", "options": {"loss_share": 2}},
            ConfigError,
            "loss_share: expected a share from 0 to 1, got 2",
        ),
        ({"budget": Budget(uniform=8)}, BudgetError, "expected less than"),
    ],
)
def test_refusals(images: Tensor, options: dict[str, Any], kind: Any, words: str) -> None:
    given = {"budget": Budget(uniform=4), "policy": "fliqs", **options}
    with pytest.raises(kind, match=words):
        SampledSearch(individual(images), **given)


def test_a_step_before_it_knows_where(images: Tensor) -> None:
    search = made(individual(images), "fliqs")
    with pytest.raises(ConfigError, match=r"before any at\(epoch, epochs, step\)"):
        search(images, LABELS)
    with torch.no_grad():
        search(images, LABELS)
    with pytest.raises(ConfigError, match="expected a network without a search"):
        made(search.net, "amed")
    search.close()
    assert search.net.assignment == Assignment(8, dict.fromkeys(search.net.sites, (8, 8)))
