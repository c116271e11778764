"""The former name of `keras_attention.server`."""

from keras_attention.server import Limits, Server, serve

__all__ = ["Limits", "Server", "serve"]
