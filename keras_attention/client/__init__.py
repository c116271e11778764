"""Clients of an exported translator that TF Serving or `keras-attention serve` serves."""

from keras_attention.client.base import Alignment, Client, Score, ServingError, Translation
from keras_attention.client.grpc_client import GrpcClient
from keras_attention.client.rest_client import RestClient
from keras_attention.client.url import connect

__all__ = ["Alignment", "Client", "GrpcClient", "RestClient", "Score", "ServingError", "Translation", "connect"]
