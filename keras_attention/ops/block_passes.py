"""Both passes of attention in blocks, for each sentence and head.

Scores never stand alone: what is to be added to or taken from them (a bias of the key, the logarithm of the sum, the
δ of the gradient) goes into a column more of both factors of the product, which costs less than a pass over a tile.

Shapes: N sentences and heads, T query length, S key length, D and E widths of a head, R rows and C columns of a tile.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.ops.dropout_mask import kept
from keras_attention.ops.tiles import (
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

HIDDEN = -1e30  # stands for -inf, which would make of a query without keys 0/0
TILE = 3 * 2**19  # numbers in a tile: with more it leaves the cache, with fewer the cores wait for the next operation
ROWS = 96  # of a tile, or a multiple: a product of 64 or 128 rows takes oneDNN longer for each


class Facts(NamedTuple):
    """What is known before any tensor is.

    Attributes:
        visible: Which query may see which key.
        heads: H.
        shared: How many heads of queries share one of keys and values.
        has_key_bias: Whether the column of the keys has a gradient.
        dropout: The share of weights to drop.
        block_size: R, or None.
    """

    visible: VisiblePairs
    heads: int
    shared: int
    has_key_bias: bool
    dropout: float
    block_size: int | None


class Tile(NamedTuple):
    """Where a tile stands: a block of rows, which are queries or keys, and a range of columns, which are the others.

    `place` is where the columns are among those of the whole group's range.
    """

    row: Any
    start: Any
    size: int
    low: Any
    high: Any
    is_hidden: bool
    by_keys: bool
    place: slice

    @property
    def places(self) -> tuple[Any, Any]:
        """Indices of queries and of keys that broadcast to (R, C)."""
        rows = ops.arange(self.size, dtype="int32")[:, None] + self.start
        columns = ops.arange(self.low, self.high, dtype="int32")[None, :]
        return (columns, rows) if self.by_keys else (rows, columns)


class Met(NamedTuple):
    """The queries that a block of keys meets, in the forms that its products need.

    Attributes:
        columns: With what is to be added to the scores, (D + 3, C).
        rows: (C, D), with a 1 more where the column of the keys has a gradient.
        upstream_columns: The gradient by their outputs, with -δ, (E + 1, C).
        upstream: The same without, (C, E).
        delta: δ, (C,).
    """

    columns: Any
    rows: Any
    upstream_columns: Any
    upstream: Any
    delta: Any

    def part(self, place: slice) -> "Met":
        """Some of the queries."""
        axes = 1, 0, 1, 0, 0
        return Met(*(part_of(x, place, axis) for x, axis in zip(self, axes, strict=True)))


class BlockPasses:
    """The passes over one call's tensors.

    Args:
        facts: What is known of them.
        tensors: `query` (N, T, D), scaled, `key` (·, S, D), `value` (·, S, E), `column` (·, S), which is added to the
            scores with a key, and where there are such, `distances` (H, T + S - 1), `seed` and the tensors of masks.
    """

    def __init__(self, facts: Facts, tensors: dict[str, Any]):
        self.facts, self.tensors = facts, tensors
        self.visible = facts.visible._replace(**{k: x for k, x in tensors.items() if k in VisiblePairs._fields})
        self.rows, self.query_length, _ = ops.shape(tensors["query"])
        self.key_length = ops.shape(tensors["key"])[1]
        self.widths = tensors["key"].shape[2], tensors["value"].shape[2]
        self.dtype = keras.backend.standardize_dtype(tensors["query"].dtype)

    def forward(self) -> tuple[Any, Any]:
        """Computes the output.

        Returns:
            The output (N, T, E), and log Σ exp(score) (N, T), a huge number where a query sees no key.
        """
        shapes = (self.query_length, self.widths[1]), (self.query_length,)
        return over_rows(self.rows, self._forward_row, shapes, self.dtype)

    def backward(self, output: Any, log_sums: Any, upstream: Any) -> dict[str, Any]:
        """Computes the gradients.

        Args:
            output: From the forward pass.
            log_sums: From the forward pass.
            upstream: The gradient by the output (N, T, E).

        Returns:
            The gradient by each of the tensors that has one.
        """
        delta = ops.sum(upstream * output, axis=-1)  # (N, T)
        lengths, (key_dim, value_dim) = (self.query_length, self.key_length), self.widths
        shapes = {"query": (lengths[0], key_dim), "key": (lengths[1], key_dim), "value": (lengths[1], value_dim)}
        if self.facts.has_key_bias:
            shapes["column"] = (lengths[1],)
        if "distances" in self.tensors:
            shapes["distances"] = (sum(lengths) - 1,)

        def row_gradients(row: Any) -> tuple[Any, ...]:
            return self._backward_row(row, *(ops.take(x, row, axis=0) for x in (log_sums, upstream, delta)))

        found = over_rows(self.rows, row_gradients, tuple(shapes.values()), self.dtype)
        found = dict(zip(shapes, found, strict=True))
        for name in ("key", "value"):
            found[name] = _sum_of_each(found[name], self.facts.shared, axis=1)
        if "distances" in found:
            found["distances"] = _sum_of_each(found["distances"], self.facts.heads, axis=0)
        return found

    def _forward_row(self, row: Any) -> tuple[Any, Any]:
        size = self._block_size(self.query_length, self.key_length)
        query, key, value, column = self._vectors(row)
        query = pad_rows(_append(query, 1.0), size)  # (·, D + 1)
        key = ops.transpose(_append(key, column))  # (D + 1, S)

        results, turn = [], ops.convert_to_tensor(0, "int32")
        for group in groups_of(-(-self.query_length // size), not self.visible.is_by_place):
            ranges = self.visible.keys_of(group.begin * size, group.end * size, self.key_length)
            keys = [range_of(key, low, high, group, turn) for low, high, _ in ranges]  # (D + 1, C)
            values = [value[low:high] for low, high, _ in ranges]  # (C, E)

            def block(carry: Any, start: Any, turn: Any, ranges: Any = ranges, keys: Any = keys, values: Any = values):
                tiles = self._tiles(row, start, size, ranges, by_keys=False)
                return carry, self._forward_block(
                    tiles, block_of(query, start, size) + ops.cast(turn, self.dtype), keys, values
                )

            _, found, turn = over_blocks(group, size, block, (), (self.widths[1], 1), self.dtype, turn)
            results.append(found)
        output, log_sums = (ops.concatenate(each, axis=0) for each in zip(*results, strict=True))
        return output[: self.query_length], log_sums[: self.query_length, 0]

    def _forward_block(self, tiles: list[Tile], queries: Any, keys: list[Any], values: list[Any]) -> tuple[Any, Any]:
        """The output (R, E) and the logarithms of the sums (R, 1) of queries (R, D + 1) that meet some tiles."""
        keys = [part_of(x, tile.place, axis=1) for tile, x in zip(tiles, keys, strict=True)]
        values = [part_of(x, tile.place, axis=0) for tile, x in zip(tiles, values, strict=True)]
        scores = [self._scores(tile, ops.matmul(queries, x)) for tile, x in zip(tiles, keys, strict=True)]  # (R, C)
        largest = _largest(scores)  # (R, 1)
        weights = [ops.exp(x - largest) for x in scores]
        total = _sum([ops.sum(x, axis=1, keepdims=True) for x in weights])  # (R, 1)
        dropped = [self._drop(tile, x) for tile, x in zip(tiles, weights, strict=True)]
        sums = _sum([ops.matmul(x, y) for x, y in zip(dropped, values, strict=True)])  # (R, E)
        sees = largest > HIDDEN / 2
        output = ops.where(sees, sums / (total * (1 - self.facts.dropout)), 0.0)
        return output, ops.where(sees, largest + ops.log(total), -HIDDEN)

    def _backward_row(self, row: Any, log_sums: Any, upstream: Any, delta: Any) -> tuple[Any, ...]:
        size = self._block_size(self.key_length, self.query_length)
        query, key, value, column = self._vectors(row)
        # The logarithms in two parts: the product may keep few of their digits.
        rough = ops.cast(ops.cast(log_sums, "bfloat16"), self.dtype)
        query_columns = ops.transpose(_append(query, -rough, rough - log_sums, 1.0))  # (D + 3, T)
        missing = -self.key_length % size
        column = ops.pad(column, ((0, missing),), constant_values=HIDDEN)
        key, value = pad_rows(key, size), pad_rows(value, size)
        key_rows = _append(key, 1.0, 1.0, column)  # (·, D + 3)
        upstream = upstream / (1 - self.facts.dropout)
        upstream_columns = ops.transpose(_append(upstream, -delta))  # (E + 1, T)
        value_rows = _append(value, 0.0 if self.facts.dropout else 1.0)  # (·, E + 1)
        if self.facts.has_key_bias:
            query = _append(query, 1.0)
        by_query = ops.zeros_like(query_columns[: self.widths[0]])  # (D, T)
        by_distance = ()
        if "distances" in self.tensors:
            by_distance = (ops.zeros_like(self._distances(row, size, by_keys=True)),)
        results, turn = [], ops.convert_to_tensor(0, "int32")
        for group in groups_of(-(-self.key_length // size), not self.visible.is_by_place):
            ranges = self.visible.queries_of(group.begin * size, group.end * size, self.query_length)
            met = [
                Met(
                    range_of(query_columns, low, high, group, turn),
                    query[low:high],
                    range_of(upstream_columns, low, high, group, turn),
                    upstream[low:high],
                    delta[low:high],
                )
                for low, high, _ in ranges
            ]

            def block(carry: Any, start: Any, turn: Any, ranges: Any = ranges, met: Any = met) -> Any:
                tiles = self._tiles(row, start, size, ranges, by_keys=True)
                keys, values = (block_of(x, start, size) + ops.cast(turn, self.dtype) for x in (key_rows, value_rows))
                return self._backward_block(tiles, met, keys, values, block_of(key, start, size), *carry)

            carry = tuple(by_query[:, low:high] for low, high, _ in ranges), by_distance
            (parts, by_distance), found, turn = over_blocks(
                group, size, block, carry, (query.shape[1], self.widths[1]), self.dtype, turn
            )
            by_query = with_columns(by_query, ranges[0][0], parts)
            results.append(found)
        by_key, by_value = (ops.concatenate(each, axis=0) for each in zip(*results, strict=True))
        found = [ops.transpose(by_query), by_key[: self.key_length, : self.widths[0]], by_value[: self.key_length]]
        if self.facts.has_key_bias:
            found.append(by_key[: self.key_length, -1])
        if by_distance:
            found.append(ops.flip(by_distance[0][size:], axis=0))
        return tuple(found)

    def _backward_block(
        self, tiles: list[Tile], met: list[Met], keys: Any, values: Any, key: Any, by_query: Any, by_distance: Any
    ) -> tuple[Any, Any]:
        """The next carry, and the gradients by the keys (R, D) and by the values (R, E) of a block."""
        by_query, by_key, by_value = list(by_query), [], []
        turned = ops.transpose(key)  # (D, R)
        for number, tile in enumerate(tiles):
            queries = met[number].part(tile.place)
            weights = ops.exp(self._scores(tile, ops.matmul(keys, queries.columns)))  # (R, C)
            by_weight = ops.matmul(values, queries.upstream_columns)
            dropped = weights
            if self.facts.dropout:
                keep = self._keep(tile)
                dropped = ops.where(keep, weights, 0.0)
                by_weight = ops.where(keep, by_weight, 0.0) - queries.delta
            by_score = weights * by_weight  # (R, C)
            by_value.append(ops.matmul(dropped, queries.upstream))
            by_key.append(ops.matmul(by_score, queries.rows))
            before = part_of(by_query[number], tile.place, axis=1)
            by_query[number] = with_columns(by_query[number], tile.place.start, [before + ops.matmul(turned, by_score)])
            if by_distance:
                by_distance = (add_at(by_distance[0], self._first_distance(tile), sum_of_diagonals(by_score)),)
        return (tuple(by_query), by_distance), (_sum(by_key), _sum(by_value))

    def _tiles(self, row: Any, start: Any, size: int, ranges: list[Any], by_keys: bool) -> list[Tile]:
        """The tiles of a block that meets these ranges; if its start is known, without what it does not see of them."""
        own = ranges
        if isinstance(start, int):
            seen = self.visible.queries_of if by_keys else self.visible.keys_of
            seen = seen(start, start + size, self.query_length if by_keys else self.key_length)
            own = [_within(each, seen[0][0], seen[-1][1]) for each in ranges]
        places = [slice(low - first, high - first) for (low, high, _), (first, _, _) in zip(own, ranges, strict=True)]
        return [Tile(row, start, size, *each, by_keys, place) for each, place in zip(own, places, strict=True)]

    def _vectors(self, row: Any) -> tuple[Any, ...]:
        """Query, key, value and column of a row; several may share the latter three."""
        tensors = [self.tensors[name] for name in ("query", "key", "value", "column")]
        return tuple(ops.take(x, row // (self.rows // ops.shape(x)[0]), axis=0) for x in tensors)

    def _scores(self, tile: Tile, product: Any) -> Any:
        """The product with the bias of the distance, and with the hidden pairs hidden."""
        if "distances" in self.tensors:
            at, distances = self._first_distance(tile), self._distances(tile.row, tile.size, tile.by_keys)
            distances = ops.slice(distances, (at,), (tile.size - 1 + tile.high - tile.low,))
            product = product + along_diagonals(distances, tile.size)
        if not tile.is_hidden:
            return product
        queries, keys = tile.places
        queries = ops.minimum(queries, self.query_length - 1)  # those that complete a block
        keys = ops.minimum(keys, self.key_length - 1)
        mask = self.visible.at(queries, keys, tile.row, self.facts.heads)
        return product if mask is None else ops.where(mask, product, ops.cast(HIDDEN, product.dtype))

    def _distances(self, row: Any, size: int, by_keys: bool) -> Any:
        """The bias of each distance from row to column, with as many more as a last block that is not full needs."""
        distances = ops.take(self.tensors["distances"], row % self.facts.heads, axis=0)
        return ops.pad(ops.flip(distances, axis=0) if by_keys else distances, ((size, 0),))

    def _first_distance(self, tile: Tile) -> Any:
        return tile.low - tile.start + (self.key_length if tile.by_keys else self.query_length)

    def _keep(self, tile: Tile) -> Any:
        return kept(self.tensors["seed"], tile.row, *tile.places, self.facts.dropout)

    def _drop(self, tile: Tile, weights: Any) -> Any:
        return ops.where(self._keep(tile), weights, 0.0) if self.facts.dropout else weights

    def _block_size(self, length: int, others: int) -> int:
        """How many rows make a tile."""
        size = self.facts.block_size
        if size is None:
            size = ROWS * min(max(TILE // others // ROWS, 1), 5)
        return min(size, length)


def _append(x: Any, *columns: Any) -> Any:
    """Vectors (L, width) with a number more, or several: a number each (L,), or the same for all."""
    like = ops.zeros_like(x[:, :1])
    return ops.concatenate([x, *(like + (c if isinstance(c, float) else c[:, None]) for c in columns)], axis=1)


def _largest(scores: list[Any]) -> Any:
    largest = [ops.max(x, axis=1, keepdims=True) for x in scores]
    return largest[0] if len(largest) == 1 else ops.maximum(*largest)


def _within(each: tuple[int, int, bool], first: int, last: int) -> tuple[int, int, bool]:
    """The part of a range that is in another one; the range as it is, hidden pairs and all, where there is none."""
    low, high = max(each[0], first), min(each[1], last)
    return (low, high, each[2]) if low < high else each


def _sum(parts: list[Any]) -> Any:
    return sum(parts[1:], parts[0])


def _sum_of_each(x: Any, size: int, axis: int) -> Any:
    """Sums over the rows (N, …) that share something: axis 1 of (N / size, size, …), or axis 0."""
    return x if size == 1 and axis == 1 else ops.sum(ops.reshape(x, (-1, size, *ops.shape(x)[1:])), axis=axis)
