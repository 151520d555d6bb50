"""Losses and updates of a training step, written out: to be read, not fast."""

import torch

LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-4
RANGE_LR = 1e-5  # a step between integers of 8 bits is about 1e-3: it must not pass 0


def cross_entropy(logits, target):
    """Minus the mean log of the label's softmax."""
    shares = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -sum(shares[row, label].log() for row, label in enumerate(target)) / len(target)


def distillation(student, teacher):
    """Minus the mean over the batch of sum p(teacher) log p(student)."""
    wanted = (teacher.exp() / teacher.exp().sum(1, keepdim=True)).detach()
    got = student.exp() / student.exp().sum(1, keepdim=True)
    return -(wanted * got.log()).sum() / len(student)


def sgd_by_hand(parameters, momenta):
    """SGD with momentum and decay; what got no gradient stays as it is."""
    for parameter in parameters:
        if parameter.grad is None:
            continue
        gradient = parameter.grad + DECAY * parameter.detach()
        momenta[parameter] = MOMENTUM * momenta.get(parameter, 0) + gradient
        with torch.no_grad():
            parameter -= LR * momenta[parameter]
        parameter.grad = None


class AdamByHand:
    """Adam of each range by itself, with a learning rate for every update."""

    def __init__(self, parameters):
        self.state = {parameter: [0.0, 0.0, 0] for parameter in parameters}

    def step(self, rate):
        for parameter, state in self.state.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad
            state[0] = 0.9 * state[0] + 0.1 * gradient
            state[1] = 0.999 * state[1] + 0.001 * gradient**2
            state[2] += 1
            mean, square = state[0] / (1 - 0.9 ** state[2]), state[1] / (1 - 0.999 ** state[2])
            with torch.no_grad():
                parameter -= rate * mean / (square.sqrt() + 1e-8)
            parameter.grad = None


def adaptive_rate_by_hand(net, gap):
    """The rate of a bit-width that is an even number of bits below the largest."""
    sizes = [min(abs(p.grad.item()), 1) for p in net.range_parameters() if p.grad is not None]
    return RANGE_LR * 10 ** (-gap // 2) * (1 - sum(sizes) / len(sizes))
