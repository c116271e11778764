"""Checks of users' own layers and models: the rules of layers on sequences, and where a mask is lost."""

from keras_attention.testing.invariance import check_mask_invariance
from keras_attention.testing.layer_rules import RULES, check_layer
from keras_attention.testing.mask_flow import LayerMasks, explain_masks

__all__ = ["RULES", "LayerMasks", "check_layer", "check_mask_invariance", "explain_masks"]
