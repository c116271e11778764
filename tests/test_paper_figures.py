"""Figures 1 and 2 of the paper, as docs/figures/paper.py draws them: every box is a layer or a function of a pass."""

import functools
import importlib.util
import re
import sys
from pathlib import Path

import keras
import pytest

import keras_attention as ka

pytestmark = pytest.mark.tensorflow

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def paper():
    """The script of the figures, and the layers of a pass."""
    spec = importlib.util.spec_from_file_location("paper", DOCS / "figures" / "paper.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS / "figures")
        patch.setitem(sys.modules, "paper", module)  # its dataclass looks there
        spec.loader.exec_module(module)
        patch.delitem(sys.modules, "drawing")
    model = module.small_model()
    return module, model, module.called_layers(model)


def test_the_boxes_of_figure_1_are_those_of_the_paper(paper):
    module, _, calls = paper
    boxes = {part: [call.name for call in group] for part, group in module.figure_1_boxes(calls).items()}
    sub_layers = ["self_attention", "self_attention_norm", "feed_forward", "feed_forward_norm"]
    assert boxes == {
        "below": ["embedding", "positions"],
        "encoder": sub_layers,
        "decoder": [*sub_layers[:2], "cross_attention", "cross_attention_norm", *sub_layers[2:]],
        "above": ["embedding"],
    }


def test_each_box_is_an_attribute_of_the_model(paper):
    module, model, calls = paper
    boxes = [call for group in module.figure_1_boxes(calls).values() for call in group]
    boxes += [call for call in calls if call.owner.endswith(".self_attention")]
    assert len(boxes) > 12
    for call in boxes:
        value = model
        for attribute, index in re.findall(r"(\w+)(?:\[(\d)\])?", f"{call.owner}.{call.name}"):
            value = getattr(value, attribute)
            value = value[int(index)] if index else value
        assert value is call.layer
        assert isinstance(value, keras.layers.Layer)
        assert type(value).__name__ == call.class_name


def test_the_boxes_of_figure_2_are_called(paper):
    module, model, calls = paper
    operations = module.called_operations()
    assert [module.WORDS[name][0] for name in operations] == ["Scale", "MatMul", "Mask (opt.)", "SoftMax", "MatMul"]
    assert set(module.SECOND_INPUTS) <= set(operations)
    attention = model.network.encoder.layers[0].self_attention
    projections = {call.name for call in calls if call.owner == "network.encoder.layers[0].self_attention"}
    assert projections == {"query_dense", "key_dense", "value_dense", "output_dense"}
    assert callable(attention.axes.join_heads)
    assert callable(functools.reduce(getattr, ("ops", "dot_product_attention"), ka))
