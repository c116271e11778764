"""The machine's own rate: matrix products of 4096 × 512 × 2048 and nothing else, as one side among the others."""

import json
import statistics
import time

ROWS, INNER, COLUMNS = 4096, 512, 2048
REPEATS = 40


def rate(dtype: str) -> float:
    """Median floating-point operations a second of one product after the other."""
    import tensorflow as tf

    a, b = (tf.cast(tf.random.normal(shape), dtype) for shape in ((ROWS, INNER), (INNER, COLUMNS)))

    @tf.function
    def product() -> tf.Tensor:
        return tf.linalg.matmul(a, b)[0, 0]

    product()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        product().numpy()
        seconds.append(time.perf_counter() - start)
    return 2 * ROWS * INNER * COLUMNS / statistics.median(seconds)


if __name__ == "__main__":
    print(json.dumps({dtype: rate(dtype) for dtype in ("float32", "bfloat16")}))
