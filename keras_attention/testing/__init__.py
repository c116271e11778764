"""Checks for users' own layers and models: what a layer on sequences keeps, and where a mask is lost."""

from keras_attention.testing.invariance import check_mask_invariance
from keras_attention.testing.layer_rules import RULES, check_layer
from keras_attention.testing.mask_flow import LayerMasks, explain_masks

__all__ = ["RULES", "LayerMasks", "check_layer", "check_mask_invariance", "explain_masks"]
