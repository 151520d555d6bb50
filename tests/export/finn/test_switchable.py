"""The template with another bit-width's tables is that bit-width's network."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.errors import FinnMappingError
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.integer_graph import Thresholds
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.switchable import table_set, with_gates
from tests.export.finn.nets import NAMES, build, images_for
from tests.tiny import IMAGE, TinyNet

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


@pytest.mark.parametrize(
    ("name", "bits"),
    [*((name, (2, 3, 4)) for name in NAMES), ("residual", (3, 5, 6)), ("residual", (2, 3))],
)
def test_tables_alone_make_half_branches(name, bits):
    net, images = build(name, bits=bits, negative=False), images_for(name)
    graphs = with_gates({bit: graph_of(net, bit) for bit in bits}, net.selection)
    template = graphs[max(bits)]
    for bit, graph in graphs.items():
        with torch.no_grad():
            expected = extract_subnet(net, bit)(images)
        assert torch.equal(graph.logits(images), expected)  # a gate alone changes nothing
        tables = table_set(template, graph)
        assert torch.equal(switched(template, tables, graph.host).logits(images), expected)


def test_gates_stand_only_before_branches_that_run_whole_and_at_half():
    def gates(*bits):
        net = build("residual", bits=bits, negative=False)
        graphs = with_gates({bit: graph_of(net, bit) for bit in bits}, net.selection)
        layers = graphs[max(bits)].layers
        return [layer.where for layer in layers if layer.where.endswith("gate")]

    assert gates(2, 4, 6, 8) == []
    assert gates(2, 3, 4) == ["branches.1.gate"]
    assert gates(3, 5, 6) == ["branches.1.gate", "branches.2.gate"]
    assert gates(2, 3) == []


def test_channels_that_a_half_branch_has_not_give_zero():
    net = build("residual", bits=(2, 3, 4), negative=False)
    graphs = with_gates({bit: graph_of(net, bit) for bit in (3, 4)}, net.selection)
    tables = table_set(graphs[4], graphs[3])
    own = {layer.where: layer for layer in graphs[3].layers if isinstance(layer, Thresholds)}
    shorter = 0
    for layer in graphs[4].layers:
        if isinstance(layer, Thresholds) and layer.where.startswith("branches.1."):
            kept = len(own[layer.where].table)
            table, source = tables[layer.output.name][kept:], layer.inputs[0]
            shorter += len(table) > 0
            for integer in (source.lowest, source.highest):
                assert ((table <= integer).sum(1) + layer.first_code == 0).all()
    assert shorter > 1


def test_a_template_with_half_of_a_branch_that_runs_whole_is_refused():
    selection = {4: (1, 2), 5: (0, 1, 2)}
    net = multiquantize(
        TinyNet(), [4, 5], profile="finn", selection=selection, input_shape=IMAGE, check=False
    )
    calibrate(net, [torch.randn(2, *IMAGE[1:])])
    graphs = {bit: graph_of(net.eval(), bit) for bit in (4, 5)}
    with pytest.raises(FinnMappingError, match=r"branches\.2: runs at half at 5 bits.*6 bits too"):
        with_gates(graphs, net.selection)
    assert with_gates({5: graphs[5]}, net.selection)[5].layers == graphs[5].layers


def test_norms_of_another_sign_at_another_bit_width_are_refused():
    net = build("residual", negative=True)
    template, graph = graph_of(net, 8), graph_of(net, 4)
    with pytest.raises(FinnMappingError, match=r"branches\.1\.layer1.*another sign at 4 bits"):
        table_set(template, graph)
