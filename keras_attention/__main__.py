"""`python -m keras_attention`, the same as the command `keras-attention`."""

from keras_attention.cli import main

main(prog_name="keras-attention")
