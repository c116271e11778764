"""A server of an exported model, for development; for production, use TF Serving."""

from keras_attention.extras import needed_by

with needed_by("keras_attention.server", "serving", "text"):
    from keras_attention.server.lifecycle import Server, serve
    from keras_attention.server.limits import Limits

__all__ = ["Limits", "Server", "serve"]
