"""Masks described by a few vectors instead of a number for each pair of a query and a key.

Shapes: B batch, T query length, S key length, H heads.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_attention.ops.masks import causal_mask, combine_masks, segment_mask, window_mask


class VisiblePairs(NamedTuple):
    """The pairs of queries and keys that may attend: those that every mask here allows; None allows all.

    Attributes:
        keys: Mask of the keys, boolean (B, S), or (S,) for all sequences.
        queries: Mask of the queries, boolean (B, T).
        pairs: Mask of pairs, boolean (B or 1, H or 1, T or 1, S or 1).
        query_segments: Integers (B, T): a query attends only to keys with the same number.
        key_segments: Integers (B, S).
        is_causal: Whether a query attends only to the keys up to its own position.
        window: A query attends only to keys at a distance below this number.
        offset: Position of the first query among the keys.

    Example:
        >>> visible = VisiblePairs(is_causal=True, window=2)
        >>> ops.convert_to_numpy(visible.mask(3, 3)).astype(int)
        array([[1, 0, 0],
               [1, 1, 0],
               [0, 1, 1]])
    """

    keys: Any = None
    queries: Any = None
    pairs: Any = None
    query_segments: Any = None
    key_segments: Any = None
    is_causal: bool = False
    window: int | None = None
    offset: Any = 0

    @property
    def differs_by_block(self) -> bool:
        """Whether `keys_of` and `queries_of` differ between blocks."""
        return isinstance(self.offset, int) and (self.is_causal or self.window is not None)

    def mask(self, query_length: Any, key_length: Any) -> Any:
        """Computes the mask of all pairs.

        Args:
            query_length: T.
            key_length: S.

        Returns:
            Boolean, broadcastable to (B, H, T, S), or None where every pair may attend.
        """
        keys, queries = self.keys, self.queries
        lengths = (query_length, key_length)
        return combine_masks(
            None if keys is None else keys if len(keys.shape) == 1 else keys[:, None, None, :],
            None if queries is None else queries[:, None, :, None],
            self.pairs,
            None if self.query_segments is None else segment_mask(self.query_segments, self.key_segments),
            causal_mask(*lengths, self.offset) if self.is_causal else None,
            None if self.window is None else window_mask(*lengths, self.window, self.offset),
        )  # (B, H, T, S)

    def keys_of(self, first: int, last: int, key_length: int) -> list[tuple[int, int, bool]]:
        """Ranges of keys that the queries first, …, last - 1 may attend to.

        Args:
            first: Index of the first query.
            last: Index after the last query.
            key_length: S.

        Returns:
            Consecutive ranges: the start, the end, and whether masks other than `keys` and `queries` apply in it.

        Example:
            >>> VisiblePairs(is_causal=True).keys_of(4, 6, 11)
            [(0, 4, False), (4, 6, True)]
        """
        first, last = first + self.offset, last + self.offset
        if self.window is not None:
            ahead = 0 if self.is_causal else self.window - 1
            return self._ranges([(first - self.window + 1, last + ahead, True)], key_length)
        if self.is_causal:
            return self._ranges([(0, first, False), (first, last, True)], key_length)
        return self._ranges([(0, key_length, False)], key_length)

    def queries_of(self, first: int, last: int, query_length: int) -> list[tuple[int, int, bool]]:
        """Ranges of queries that may attend to some of the keys first, …, last - 1.

        Args:
            first: Index of the first key.
            last: Index after the last key.
            query_length: T.

        Returns:
            Consecutive ranges, see `keys_of`.

        Example:
            >>> VisiblePairs(is_causal=True).queries_of(4, 6, 11)
            [(4, 6, True), (6, 11, False)]
        """
        first, last = first - self.offset, last - self.offset
        if self.window is not None:
            ahead = 0 if self.is_causal else self.window - 1
            return self._ranges([(first - ahead, last + self.window - 1, True)], query_length)
        if self.is_causal:
            return self._ranges([(first, last, True), (last, query_length, False)], query_length)
        return self._ranges([(0, query_length, False)], query_length)

    def at(self, queries: Any, keys: Any, row: Any, heads: int) -> Any:
        """Computes the mask of some pairs of a sequence and head, without `keys` and `queries`.

        Args:
            queries: Indices of queries, which broadcast against those of the keys.
            keys: Indices of keys.
            row: Index of the sequence times H plus index of the head.
            heads: H.

        Returns:
            Boolean, or None where all may attend.

        Example:
            >>> visible = VisiblePairs(is_causal=True)
            >>> ops.convert_to_numpy(visible.at(ops.array([[0], [1]]), ops.array([[0, 1]]), row=0, heads=1)).astype(int)
            array([[1, 0],
                   [1, 1]])
        """
        distances = keys - queries - self.offset
        sequence = row // heads
        masks = [
            distances <= 0 if self.is_causal else None,
            None if self.window is None else ops.abs(distances) < self.window,
        ]
        if self.query_segments is not None:
            of_queries, of_keys = (ops.take(x, sequence, axis=0) for x in (self.query_segments, self.key_segments))
            masks.append(ops.equal(ops.take(of_queries, queries), ops.take(of_keys, keys)))
        if self.pairs is not None:
            index, sizes = 0, ops.shape(self.pairs)
            for position, size in zip((sequence, row % heads, queries, keys), sizes, strict=True):
                index = index * size + (0 if isinstance(size, int) and size == 1 else position)
            masks.append(ops.take(ops.reshape(self.pairs, (-1,)), index))
        return combine_masks(*masks)

    def _ranges(self, ranges: list[tuple[Any, Any, bool]], length: int) -> list[tuple[int, int, bool]]:
        if self.pairs is not None or self.query_segments is not None:
            ranges = [(ranges[0][0], ranges[-1][1], True)]
        if not isinstance(self.offset, int):
            ranges = [(0, length, True)]  # the sizes of the ranges must be static
        clipped = [(min(max(start, 0), length), min(max(end, 0), length), hidden) for start, end, hidden in ranges]
        return [each for each in clipped if each[0] < each[1]] or [
            (0, 1, True)
        ]  # one range at least: an empty maximum is an error
