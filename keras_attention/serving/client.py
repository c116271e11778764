"""The former name of `keras_attention.client`."""

from keras_attention.client import (
    Alignment,
    Client,
    GrpcClient,
    RestClient,
    Score,
    ServingError,
    Translation,
    connect,
)

__all__ = ["Alignment", "Client", "GrpcClient", "RestClient", "Score", "ServingError", "Translation", "connect"]
