"""The device's own rate through JAX: square matrix products and nothing else, as one side among the others."""

import json
import time

REPEATS = 20


def rate(dtype: str, size: int) -> float:
    """Floating-point operations a second of products in a row."""
    import jax

    keys = jax.random.split(jax.random.key(1))
    a, b = (jax.random.normal(key, (size, size), dtype) for key in keys)
    product = jax.jit(lambda a, b: a @ b)
    product(a, b).block_until_ready()
    start = time.perf_counter()
    for _ in range(REPEATS):
        out = product(a, b)
    out.block_until_ready()
    return 2 * REPEATS * size**3 / (time.perf_counter() - start)


def main() -> None:
    """Prints the rates by dtype, and the device."""
    import jax

    device = jax.local_devices()[0]
    size = 8192 if device.platform == "gpu" else 256
    print(json.dumps({**{dtype: rate(dtype, size) for dtype in ("float32", "bfloat16")}, "device": device.device_kind}))


if __name__ == "__main__":
    main()
