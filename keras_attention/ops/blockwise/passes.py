"""The forward and the backward pass of blockwise attention, for each sentence and head.

Terms added to the scores (a bias of the key, the log-sum-exp, the δ of the gradient) become extra columns of both
factors of the product, which costs less than another pass over a tile.

Shapes: N sentences and heads, T query length, S key length, D and E widths of a head, R rows and C columns of a tile.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.ops.attention import MASKED_SCORE
from keras_attention.ops.blockwise.dropout_mask import keep_mask
from keras_attention.ops.blockwise.tiles import (
    add_at,
    along_diagonals,
    block_of,
    groups_of,
    over_blocks,
    over_rows,
    pad_rows,
    part_of,
    range_of,
    sum_of_diagonals,
    with_columns,
)
from keras_attention.ops.visible_pairs import VisiblePairs

TILE_SIZE = 3 * 2**19  # elements: a larger tile leaves the cache, a smaller one keeps the cores waiting
ROWS = 96  # rows of a tile, or a multiple: oneDNN is slower per row with 64 or 128


class StaticArguments(NamedTuple):
    """The arguments of a call that are not tensors.

    Attributes:
        visible: Which query may see which key.
        heads: H.
        queries_per_kv_head: Query heads that share a head of keys and values.
        has_key_bias: Whether `key_bias` has a gradient.
        dropout: Dropout rate of the weights.
        block_size: R, or None.
    """

    visible: VisiblePairs
    heads: int
    queries_per_kv_head: int
    has_key_bias: bool
    dropout: float
    block_size: int | None


class Tile(NamedTuple):
    """The position of a tile: a block of rows and a range of columns; rows are keys where `by_keys`, queries otherwise.

    `columns` selects the tile's columns from those of its group.
    """

    row: Any
    start: Any
    size: int
    low: Any
    high: Any
    is_masked: bool
    by_keys: bool
    columns: slice

    @property
    def indices(self) -> tuple[Any, Any]:
        """Indices of queries and of keys, which broadcast to (R, C)."""
        rows = ops.arange(self.size, dtype="int32")[:, None] + self.start
        columns = ops.arange(self.low, self.high, dtype="int32")[None, :]
        return (columns, rows) if self.by_keys else (rows, columns)


class QuerySlices(NamedTuple):
    """The queries that see a block of keys, in the layouts that its products take.

    Attributes:
        columns: Queries with the terms added to the scores, (D + 3, C).
        rows: Queries (C, D), followed by a 1 where `key_bias` has a gradient.
        upstream_columns: The gradient of their outputs and -δ, (E + 1, C).
        upstream: The gradient of their outputs, (C, E).
        delta: δ, (C,).
    """

    columns: Any
    rows: Any
    upstream_columns: Any
    upstream: Any
    delta: Any

    def part(self, columns: slice) -> "QuerySlices":
        """The slices of some of the queries."""
        axes = 1, 0, 1, 0, 0
        return QuerySlices(*(part_of(x, columns, axis) for x, axis in zip(self, axes, strict=True)))


class BlockPasses:
    """Both passes over the tensors of a call.

    Args:
        static: The arguments that are not tensors.
        tensors: `query` (N, T, D), scaled, `key` (·, S, D), `value` (·, S, E), `column` (·, S), which is added to the
            scores with a key, and, where given, `distances` (H, T + S - 1), `seed` and the tensors of masks.
    """

    def __init__(self, static: StaticArguments, tensors: dict[str, Any]):
        self.static, self.tensors = static, tensors
        self.visible = static.visible._replace(**{k: x for k, x in tensors.items() if k in VisiblePairs._fields})
        self.rows, self.query_length, _ = ops.shape(tensors["query"])
        self.key_length = ops.shape(tensors["key"])[1]
        self.widths = tensors["key"].shape[2], tensors["value"].shape[2]
        self.dtype = keras.backend.standardize_dtype(tensors["query"].dtype)

    def forward(self) -> tuple[Any, Any]:
        """The output (N, T, E), and log Σ exp(score) (N, T): 1e30 where a query sees no key."""
        shapes = (self.query_length, self.widths[1]), (self.query_length,)
        return over_rows(self.rows, self._forward_row, shapes, self.dtype)

    def backward(self, output: Any, log_sums: Any, upstream: Any) -> dict[str, Any]:
        """The gradient of each tensor that has one, from both results of `forward` and the gradient of its output."""
        delta = ops.sum(upstream * output, axis=-1)  # (N, T)
        lengths, (key_dim, value_dim) = (self.query_length, self.key_length), self.widths
        shapes = {"query": (lengths[0], key_dim), "key": (lengths[1], key_dim), "value": (lengths[1], value_dim)}
        if self.static.has_key_bias:
            shapes["column"] = (lengths[1],)
        if "distances" in self.tensors:
            shapes["distances"] = (sum(lengths) - 1,)

        def row_gradients(row: Any) -> tuple[Any, ...]:
            return self._backward_row(row, *(ops.take(x, row, axis=0) for x in (log_sums, upstream, delta)))

        found = over_rows(self.rows, row_gradients, tuple(shapes.values()), self.dtype)
        found = dict(zip(shapes, found, strict=True))
        for name in ("key", "value"):
            found[name] = _sum_of_each(found[name], self.static.queries_per_kv_head, axis=1)
        if "distances" in found:
            found["distances"] = _sum_of_each(found["distances"], self.static.heads, axis=0)
        return found

    def _forward_row(self, row: Any) -> tuple[Any, Any]:
        size = self._block_size(self.query_length, self.key_length)
        query, key, value, column = self._vectors(row)
        query = pad_rows(_append(query, 1.0), size)  # (·, D + 1)
        key = ops.transpose(_append(key, column))  # (D + 1, S)

        results, order = [], ops.convert_to_tensor(0, "int32")
        for group in groups_of(-(-self.query_length // size), not self.visible.differs_by_block):
            ranges = self.visible.keys_of(group.begin * size, group.end * size, self.key_length)
            keys = [range_of(key, low, high, group, order) for low, high, _ in ranges]  # (D + 1, C)
            values = [value[low:high] for low, high, _ in ranges]  # (C, E)

            def block(carry: Any, start: Any, order: Any, ranges: Any = ranges, keys: Any = keys, values: Any = values):
                tiles = self._tiles(row, start, size, ranges, by_keys=False)
                return carry, self._forward_block(
                    tiles, block_of(query, start, size) + ops.cast(order, self.dtype), keys, values
                )

            _, found, order = over_blocks(group, size, block, (), (self.widths[1], 1), self.dtype, order)
            results.append(found)
        output, log_sums = (ops.concatenate(each, axis=0) for each in zip(*results, strict=True))
        return output[: self.query_length], log_sums[: self.query_length, 0]

    def _forward_block(self, tiles: list[Tile], queries: Any, keys: list[Any], values: list[Any]) -> tuple[Any, Any]:
        """The output (R, E) and the log-sum-exp (R, 1) of queries (R, D + 1) over the tiles of a block."""
        keys = [part_of(x, tile.columns, axis=1) for tile, x in zip(tiles, keys, strict=True)]
        values = [part_of(x, tile.columns, axis=0) for tile, x in zip(tiles, values, strict=True)]
        scores = [self._scores(tile, ops.matmul(queries, x)) for tile, x in zip(tiles, keys, strict=True)]  # (R, C)
        largest = _largest(scores)  # (R, 1)
        weights = [ops.exp(x - largest) for x in scores]
        total = _sum([ops.sum(x, axis=1, keepdims=True) for x in weights])  # (R, 1)
        dropped = [self._drop(tile, x) for tile, x in zip(tiles, weights, strict=True)]
        sums = _sum([ops.matmul(x, y) for x, y in zip(dropped, values, strict=True)])  # (R, E)
        sees = largest > MASKED_SCORE / 2
        output = ops.where(sees, sums / (total * (1 - self.static.dropout)), 0.0)
        return output, ops.where(sees, largest + ops.log(total), -MASKED_SCORE)

    def _backward_row(self, row: Any, log_sums: Any, upstream: Any, delta: Any) -> tuple[Any, ...]:
        size = self._block_size(self.key_length, self.query_length)
        query, key, value, column = self._vectors(row)
        # The log-sum-exp in two parts: the product may keep few of its digits.
        rough = ops.cast(ops.cast(log_sums, "bfloat16"), self.dtype)
        query_columns = ops.transpose(_append(query, -rough, rough - log_sums, 1.0))  # (D + 3, T)
        missing = -self.key_length % size
        column = ops.pad(column, ((0, missing),), constant_values=MASKED_SCORE)
        key, value = pad_rows(key, size), pad_rows(value, size)
        key_rows = _append(key, 1.0, 1.0, column)  # (·, D + 3)
        upstream = upstream / (1 - self.static.dropout)
        upstream_columns = ops.transpose(_append(upstream, -delta))  # (E + 1, T)
        value_rows = _append(value, 0.0 if self.static.dropout else 1.0)  # (·, E + 1)
        if self.static.has_key_bias:
            query = _append(query, 1.0)
        by_query = ops.zeros_like(query_columns[: self.widths[0]])  # (D, T)
        by_distance = ()
        if "distances" in self.tensors:
            by_distance = (ops.zeros_like(self._distances(row, size, by_keys=True)),)
        results, order = [], ops.convert_to_tensor(0, "int32")
        for group in groups_of(-(-self.key_length // size), not self.visible.differs_by_block):
            ranges = self.visible.queries_of(group.begin * size, group.end * size, self.query_length)
            query_slices = [
                QuerySlices(
                    range_of(query_columns, low, high, group, order),
                    query[low:high],
                    range_of(upstream_columns, low, high, group, order),
                    upstream[low:high],
                    delta[low:high],
                )
                for low, high, _ in ranges
            ]

            def block(
                carry: Any, start: Any, order: Any, ranges: Any = ranges, query_slices: Any = query_slices
            ) -> Any:
                tiles = self._tiles(row, start, size, ranges, by_keys=True)
                keys, values = (block_of(x, start, size) + ops.cast(order, self.dtype) for x in (key_rows, value_rows))
                return self._backward_block(tiles, query_slices, keys, values, block_of(key, start, size), *carry)

            carry = tuple(by_query[:, low:high] for low, high, _ in ranges), by_distance
            (parts, by_distance), found, order = over_blocks(
                group, size, block, carry, (query.shape[1], self.widths[1]), self.dtype, order
            )
            by_query = with_columns(by_query, ranges[0][0], parts)
            results.append(found)
        by_key, by_value = (ops.concatenate(each, axis=0) for each in zip(*results, strict=True))
        found = [ops.transpose(by_query), by_key[: self.key_length, : self.widths[0]], by_value[: self.key_length]]
        if self.static.has_key_bias:
            found.append(by_key[: self.key_length, -1])
        if by_distance:
            found.append(ops.flip(by_distance[0][size:], axis=0))
        return tuple(found)

    def _backward_block(
        self,
        tiles: list[Tile],
        query_slices: list[QuerySlices],
        keys: Any,
        values: Any,
        key: Any,
        by_query: Any,
        by_distance: Any,
    ) -> tuple[Any, Any]:
        """The next carry, and the gradients of the keys (R, D) and of the values (R, E) of a block."""
        by_query, by_key, by_value = list(by_query), [], []
        transposed = ops.transpose(key)  # (D, R)
        for number, tile in enumerate(tiles):
            queries = query_slices[number].part(tile.columns)
            weights = ops.exp(self._scores(tile, ops.matmul(keys, queries.columns)))  # (R, C)
            by_weight = ops.matmul(values, queries.upstream_columns)
            dropped = weights
            if self.static.dropout:
                keep = self._keep(tile)
                dropped = ops.where(keep, weights, 0.0)
                by_weight = ops.where(keep, by_weight, 0.0) - queries.delta
            by_score = weights * by_weight  # (R, C)
            by_value.append(ops.matmul(dropped, queries.upstream))
            by_key.append(ops.matmul(by_score, queries.rows))
            before = part_of(by_query[number], tile.columns, axis=1)
            by_query[number] = with_columns(
                by_query[number], tile.columns.start, [before + ops.matmul(transposed, by_score)]
            )
            if by_distance:
                by_distance = (add_at(by_distance[0], self._first_distance(tile), sum_of_diagonals(by_score)),)
        return (tuple(by_query), by_distance), (_sum(by_key), _sum(by_value))

    def _tiles(self, row: Any, start: Any, size: int, ranges: list[Any], by_keys: bool) -> list[Tile]:
        """The tiles of a block, one for each range; a block whose start is known skips what it does not see."""
        own = ranges
        if isinstance(start, int):
            seen = self.visible.queries_of if by_keys else self.visible.keys_of
            seen = seen(start, start + size, self.query_length if by_keys else self.key_length)
            own = [_within(each, seen[0][0], seen[-1][1]) for each in ranges]
        columns = [slice(low - first, high - first) for (low, high, _), (first, _, _) in zip(own, ranges, strict=True)]
        return [Tile(row, start, size, *each, by_keys, part) for each, part in zip(own, columns, strict=True)]

    def _vectors(self, row: Any) -> tuple[Any, ...]:
        """Query, key, value and column of a row; several rows may share the last three."""
        tensors = [self.tensors[name] for name in ("query", "key", "value", "column")]
        return tuple(ops.take(x, row // (self.rows // ops.shape(x)[0]), axis=0) for x in tensors)

    def _scores(self, tile: Tile, product: Any) -> Any:
        """The product plus the bias by distance, masked."""
        if "distances" in self.tensors:
            at, distances = self._first_distance(tile), self._distances(tile.row, tile.size, tile.by_keys)
            distances = ops.slice(distances, (at,), (tile.size - 1 + tile.high - tile.low,))
            product = product + along_diagonals(distances, tile.size)
        if not tile.is_masked:
            return product
        queries, keys = tile.indices
        queries = ops.minimum(queries, self.query_length - 1)  # rows that complete a block
        keys = ops.minimum(keys, self.key_length - 1)
        mask = self.visible.at(queries, keys, tile.row, self.static.heads)
        return product if mask is None else ops.where(mask, product, ops.cast(MASKED_SCORE, product.dtype))

    def _distances(self, row: Any, size: int, by_keys: bool) -> Any:
        """The bias by distance from row to column, padded for a last block that is not full."""
        distances = ops.take(self.tensors["distances"], row % self.static.heads, axis=0)
        return ops.pad(ops.flip(distances, axis=0) if by_keys else distances, ((size, 0),))

    def _first_distance(self, tile: Tile) -> Any:
        return tile.low - tile.start + (self.key_length if tile.by_keys else self.query_length)

    def _keep(self, tile: Tile) -> Any:
        return keep_mask(self.tensors["seed"], tile.row, *tile.indices, self.static.dropout)

    def _drop(self, tile: Tile, weights: Any) -> Any:
        return ops.where(self._keep(tile), weights, 0.0) if self.static.dropout else weights

    def _block_size(self, length: int, others: int) -> int:
        """Rows of a block: as many as make a tile of `TILE_SIZE` elements."""
        size = self.static.block_size
        if size is None:
            size = ROWS * min(max(TILE_SIZE // others // ROWS, 1), 5)
        return min(size, length)


def _append(x: Any, *columns: Any) -> Any:
    """Vectors (L, width) with further columns, each (L,) or a constant."""
    like = ops.zeros_like(x[:, :1])
    return ops.concatenate([x, *(like + (c if isinstance(c, float) else c[:, None]) for c in columns)], axis=1)


def _largest(scores: list[Any]) -> Any:
    largest = [ops.max(x, axis=1, keepdims=True) for x in scores]
    return largest[0] if len(largest) == 1 else ops.maximum(*largest)


def _within(each: tuple[int, int, bool], first: int, last: int) -> tuple[int, int, bool]:
    """The part of a range between first and last; the whole range where that is empty."""
    low, high = max(each[0], first), min(each[1], last)
    return (low, high, each[2]) if low < high else each


def _sum(parts: list[Any]) -> Any:
    return sum(parts[1:], parts[0])


def _sum_of_each(x: Any, size: int, axis: int) -> Any:
    """Sums of rows (N, …) seen as (N / size, size, …), over axis 1 or 0."""
    return x if size == 1 and axis == 1 else ops.sum(ops.reshape(x, (-1, size, *ops.shape(x)[1:])), axis=axis)
