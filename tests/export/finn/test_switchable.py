"""The template with another bit-width's tables is that bit-width's network."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits

from brevitas_multiquant import calibrate, extract_subnet
from brevitas_multiquant.errors import FinnMappingError
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.integer_graph import Thresholds
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.switchable import table_set
from tests.export.finn.nets import build

BITS = (2, 4, 6, 8)


def digits(classes=(0, 1, 2, 3), count=96):
    """Handwritten digits of several classes, as the network takes them."""
    data, labels = load_digits(return_X_y=True)
    chosen = [i for i, label in enumerate(labels) if label in classes][:count]
    images = torch.tensor(data[chosen], dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return images.repeat(1, 3, 1, 1), torch.tensor(labels[chosen])


def graph_of(net, bits):
    return lower(extract_subnet(net, bits), branch_names(net, bits), net.input_shape)


def switched(template, tables, host):
    layers = [
        replace(layer, table=tables[layer.output.name]) if isinstance(layer, Thresholds) else layer
        for layer in template.layers
    ]
    return replace(template, layers=layers, host=host)


@pytest.fixture(scope="module")
def net():
    net = build("residual", negative=False)
    images, _ = digits()
    calibrate(net, [images])
    return net.eval()


@pytest.mark.parametrize("bits", BITS)
def test_tables_alone_turn_the_template_into_every_bit_width(net, bits):
    images, labels = digits()
    assert len(images) >= 64 and len(labels.unique()) >= 3
    template, graph = graph_of(net, max(BITS)), graph_of(net, bits)
    tables = table_set(template, graph)
    with torch.no_grad():
        expected = extract_subnet(net, bits)(images)
    assert torch.equal(switched(template, tables, graph.host).logits(images), expected)


@pytest.mark.parametrize("bits", BITS)
def test_tables_keep_the_templates_form(net, bits):
    template = graph_of(net, max(BITS))
    tables = table_set(template, graph_of(net, bits))
    for layer in template.layers:
        if isinstance(layer, Thresholds):
            table, source = tables[layer.output.name], layer.inputs[0]
            assert table.shape == layer.table.shape
            assert (table.diff(dim=1) >= 0).all()
            assert source.lowest <= table.min() and table.max() <= source.highest + 1


def test_norms_of_another_sign_at_another_bit_width_are_refused():
    net = build("residual", negative=True)
    template, graph = graph_of(net, 8), graph_of(net, 4)
    with pytest.raises(FinnMappingError, match=r"branches\.1\.layer1.*another sign at 4 bits"):
        table_set(template, graph)
