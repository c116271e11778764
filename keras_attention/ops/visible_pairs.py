"""Which query may see which key, said in a few vectors instead of a number for each pair.

Shapes: B batch, T query length, S key length, H heads.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_attention.ops.masks import causal_mask, combine_masks, segment_mask, window_mask


class VisiblePairs(NamedTuple):
    """A query sees a key where all that is given here allows it; None allows all.

    Attributes:
        keys: Boolean (B, S), or (S,) where it is the same for all.
        queries: Boolean (B, T).
        pairs: Boolean (B or 1, H or 1, T or 1, S or 1).
        query_segments: Integers (B, T): a query sees keys with the same number alone.
        key_segments: Integers (B, S).
        is_causal: Whether a query sees the keys up to its own position alone.
        window: A query sees keys at a distance below this alone.
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
    def is_by_place(self) -> bool:
        """Whether `keys_of` and `queries_of` differ between blocks."""
        return isinstance(self.offset, int) and (self.is_causal or self.window is not None)

    def mask(self, query_length: Any, key_length: Any) -> Any:
        """The mask of all pairs.

        Args:
            query_length: T.
            key_length: S.

        Returns:
            Boolean, broadcastable to (B, H, T, S), or None where every pair is visible.
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
        """The ranges of keys that the queries first, …, last - 1 may see.

        Args:
            first: An index.
            last: The index past the end of the block.
            key_length: S.

        Returns:
            Each range as its start, its end, and whether pairs in it may be hidden by more than `keys` and `queries`;
            a range starts where the one before ends.

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
        """The ranges of queries that may see some of the keys first, …, last - 1.

        Args:
            first: An index.
            last: The index past the end of the block.
            query_length: T.

        Returns:
            As `keys_of`.

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
        """The mask of some pairs of a sentence and head, but for `keys` and `queries`.

        Args:
            queries: Indices, to be broadcast with those of the keys.
            keys: Indices.
            row: Number of the sentence times H plus number of the head.
            heads: H.

        Returns:
            Boolean, or None where all are visible.

        Example:
            >>> visible = VisiblePairs(is_causal=True)
            >>> ops.convert_to_numpy(visible.at(ops.array([[0], [1]]), ops.array([[0, 1]]), row=0, heads=1)).astype(int)
            array([[1, 0],
                   [1, 1]])
        """
        distances = keys - queries - self.offset
        sentence = row // heads
        found = [
            distances <= 0 if self.is_causal else None,
            None if self.window is None else ops.abs(distances) < self.window,
        ]
        if self.query_segments is not None:
            queries_of, keys_of = (ops.take(x, sentence, axis=0) for x in (self.query_segments, self.key_segments))
            found.append(ops.equal(ops.take(queries_of, queries), ops.take(keys_of, keys)))
        if self.pairs is not None:
            index, sizes = 0, ops.shape(self.pairs)
            for place, size in zip((sentence, row % heads, queries, keys), sizes, strict=True):
                index = index * size + (0 if isinstance(size, int) and size == 1 else place)
            found.append(ops.take(ops.reshape(self.pairs, (-1,)), index))
        return combine_masks(*found)

    def _ranges(self, ranges: list[tuple[Any, Any, bool]], length: int) -> list[tuple[int, int, bool]]:
        if self.pairs is not None or self.query_segments is not None:
            ranges = [(ranges[0][0], ranges[-1][1], True)]
        if not isinstance(self.offset, int):
            ranges = [(0, length, True)]  # else the ranges would be shapes that a compiler does not know
        clipped = [(min(max(start, 0), length), min(max(end, 0), length), hidden) for start, end, hidden in ranges]
        return [each for each in clipped if each[0] < each[1]] or [(0, 1, True)]  # there is no maximum of nothing
