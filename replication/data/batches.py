"""Which tokens a step sees: a pure function of seed, split and step."""

import zlib
from collections.abc import Iterator

import numpy as np

from replication.data.tokens import Tokens
from replication.system.errors import UserError


class Batches:
    """Batches from one split's tokens.

    A training batch is a function of (seed, split, step) alone, so neither evaluation cadence nor a resumed run
    changes the order, and all methods with the same seed see the same batches.

    Attributes:
        tokens: [tokens] integers, an array or as `PreparedData.tokens` gives them.
        split: their name.
        batch_size: sequences per batch, over all processes.
        context_length: in tokens; a sequence holds one more, as each position predicts the next.

    Raises:
        UserError: the split is shorter than one sequence, or than one batch.
    """

    def __init__(
        self, tokens: np.ndarray | Tokens, split: str, seed: int, batch_size: int, context_length: int
    ) -> None:
        length, needed = context_length + 1, batch_size * (context_length + 1)
        if len(tokens) < length:
            raise UserError(
                f"model.n_positions is {context_length}, longer than the shards allow; "
                f"allowed: at most {max(len(tokens) - 1, 0)}, as the {split} split has {len(tokens)} tokens"
            )
        if len(tokens) < needed:
            raise UserError(
                f"train.batch_size is {batch_size}, but the {split} split has {len(tokens)} tokens, "
                f"shorter than one batch of {needed}; allowed: at most {len(tokens) // length}, or a longer corpus"
            )
        self.tokens, self.split, self.seed = tokens, split, seed
        self.batch_size, self.context_length = batch_size, context_length

    def train_batch(self, step: int) -> np.ndarray:
        """[batch_size, context_length + 1] int64: windows at uniformly random places, for any `step` in any order."""
        generator = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([self.seed, zlib.crc32(self.split.encode()), step]))
        )
        return self._windows(generator.integers(0, len(self.tokens) - self.context_length, size=self.batch_size))

    def evaluation_batches(self, num: int | None = None) -> Iterator[np.ndarray]:
        """`num` batches like training's, or as many as the split holds: evenly spaced windows that do not overlap,
        the same for every seed. None: the whole split, but for an end that is shorter than a window; the last batch
        may be smaller."""
        length = self.context_length + 1
        windows = len(self.tokens) // length
        chosen = np.arange(windows)
        if num is not None:
            size = min(num, windows // self.batch_size) * self.batch_size
            chosen = np.arange(size) * windows // size
        for first in range(0, len(chosen), self.batch_size):
            yield self._windows(chosen[first : first + self.batch_size] * length)

    def _windows(self, starts: np.ndarray) -> np.ndarray:
        windows = [self.tokens[start : start + self.context_length + 1] for start in starts.tolist()]
        return np.stack(windows).astype(np.int64)
