"""`python -m keras_attention`, the same as the command `keras-attention`."""

from keras_attention_command import main

if __name__ == "__main__":
    main()
