"""The C kernels as Python calls them, on the CPU: a sparse weight's three products, attention, GELU, and the loss."""

import ctypes
import functools
import importlib.util
from collections.abc import Callable
from ctypes import c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replication.system.instructions import read_level

GENERIC, AVX2, AVX512, BFLOAT16, TILES = range(
    5
)  # kinds of processor, as in sparse.c and `levels`; AMX's tiles for attention
PRECISIONS = (torch.float32, torch.bfloat16)
BLOCK = 512  # outputs that a product sums at a time, within the second-level cache
COPYING = 60  # seconds by which a copied tree's times may be out of order


class _Structure(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("n_in", "n_out", "group", "chunk", "block")] + [
        (name, c_void_p) for name in ("start", "order", "offset", "value")
    ]


class _Attention(ctypes.Structure):
    _fields_ = [
        (name, c_int64) for name in ("batch", "heads", "length", "size", "window", "block", "stride", "far")
    ] + [("scale", ctypes.c_float)]


class _Data:
    """An argument's type: a tensor, of which C gets the address of its data, or None for null."""

    @staticmethod
    def from_param(tensor: Tensor | None) -> c_void_p:
        return c_void_p(None if tensor is None else tensor.data_ptr())


# Types of the kernels' arguments, by what they say.
KIND = THREADS = FLAG = c_int
SIZE, STRIDES = c_int64, c_int64 * 3
STRUCTURE, ATTENTION = ctypes.POINTER(_Structure), ctypes.POINTER(_Attention)
BLOCKS = GROUPS = ctypes.c_void_p  # those of tiles.py and row_tiles.py, by reference
DATA = _Data
SIGNATURES = {
    "sparse_product": (KIND, THREADS, STRUCTURE, DATA, FLAG, SIZE, DATA, DATA, FLAG, SIZE, SIZE),
    "sparse_gradient": (KIND, THREADS, STRUCTURE, DATA, DATA, SIZE, DATA),
    "sparse_attention": (KIND, THREADS, ATTENTION, DATA, DATA, DATA, FLAG, STRIDES, DATA, DATA, DATA),
    "sparse_attention_gradient": (KIND, THREADS, ATTENTION, *[DATA] * 3, FLAG, STRIDES, DATA, STRIDES, *[DATA] * 5),
    "sparse_gelu": (KIND, THREADS, DATA, DATA, DATA, FLAG, SIZE),
    "sparse_cross_entropy": (KIND, THREADS, DATA, FLAG, SIZE, SIZE, DATA, DATA),
    "sparse_tiles": (KIND, SIZE, SIZE),
    "sparse_structure": (DATA, SIZE, FLAG, STRUCTURE, c_int32, c_int32, DATA, DATA, DATA, DATA),
    "sparse_pack": (THREADS, FLAG, FLAG, DATA, DATA, DATA, SIZE, DATA),
    "sparse_unpack": (THREADS, DATA, DATA, DATA, SIZE, DATA),
    "sparse_tiles_allowed": (),
    "sparse_tile_product": (THREADS, BLOCKS, DATA, DATA, FLAG, SIZE),
    "sparse_tile_gradient": (THREADS, BLOCKS, DATA, DATA, SIZE, DATA),
    "sparse_tile_pack": (THREADS, DATA, SIZE, DATA, SIZE, SIZE, FLAG, DATA),
    "sparse_tile_scatter": (THREADS, BLOCKS, DATA, DATA),
    "sparse_group_product": (THREADS, GROUPS, DATA, DATA, DATA, FLAG, SIZE),
    "sparse_group_product_back": (THREADS, GROUPS, DATA, DATA, DATA, FLAG, SIZE),
    "sparse_group_gradient": (THREADS, GROUPS, DATA, DATA, SIZE, DATA),
    "sparse_group_pack": (THREADS, GROUPS, DATA, FLAG),
    "sparse_group_scatter": (THREADS, GROUPS, DATA, FLAG, DATA),
}


# Those that take memory of their own: C says by 1 that there was none, before anything was written.
TAKES_MEMORY = (
    "sparse_product",
    "sparse_attention",
    "sparse_attention_gradient",
    "sparse_structure",
    "sparse_tile_product",
    "sparse_tile_gradient",
    "sparse_group_product_back",
)


def sources() -> list[Path]:
    """The files that the kernels are built from."""
    return sorted(file for ending in ("c", "inc") for file in Path(__file__).parent.glob(f"*.{ending}"))


def _check_success(failed: int, kernel: Callable[..., int], _arguments: tuple[Any, ...]) -> None:
    if failed:
        raise MemoryError(f"{kernel.__name__} gets no memory to work in")


@functools.cache
def library() -> Any:
    """The kernels (ctypes.CDLL), or None where they were not built from this source.

    Loaded after torch, so that both share one OpenMP and its threads.
    """
    spec = importlib.util.find_spec("replication.kernels._sparse")
    if spec is None or spec.origin is None:
        return None
    built = Path(spec.origin).stat().st_mtime + COPYING
    if any(file.stat().st_mtime > built for file in sources()):
        return None
    loaded = ctypes.CDLL(spec.origin)
    for name, arguments in SIGNATURES.items():
        getattr(loaded, name).argtypes = arguments
    for name in TAKES_MEMORY:
        getattr(loaded, name).errcheck = _check_success
    loaded.sparse_tiles.restype = c_int64
    return loaded


@functools.cache
def processor_kind() -> int:
    """The best of the kinds that this processor runs, and that this process may use (`levels.held`)."""
    return min(library().sparse_kind(), read_level())


def gains() -> bool:
    """Are the kernels here, and the processor one of those on which they were measured to be faster?"""
    return library() is not None and processor_kind() >= AVX2


def takes(x: Tensor) -> bool:
    """Are attention, GELU and the loss of this computed by the kernels?

    Of numbers, no fake tensor: float32 or bfloat16 ones on a CPU that is known to gain.
    """
    return type(x) is Tensor and x.device.type == "cpu" and x.dtype in PRECISIONS and gains()


def check_weight(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The weight, if it is a contiguous float32 matrix of that shape.

    Raises:
        ValueError: another kind of matrix.
    """
    if tuple(weight.shape) != tuple(shape) or weight.dtype != torch.float32 or not weight.is_contiguous():
        raise ValueError(
            f"weight is {weight.dtype}, {tuple(weight.shape)}; allowed: contiguous float32 of {tuple(shape)}"
        )
    return weight


def check_activations(x: Tensor, features: int) -> Tensor:
    """The activations, if they are [n, features], in float32 or bfloat16.

    Raises:
        ValueError: others.
    """
    if x.dtype not in PRECISIONS or x.shape[1] != features:
        raise ValueError(f"activations are {x.dtype}, {tuple(x.shape)}; allowed: float32 or bfloat16, [n, {features}]")
    return x


def round_activations(x: Tensor, features: int) -> Tensor:
    """Activations [n, features] in bfloat16, contiguous; raises as `check_activations`."""
    return check_activations(x, features).to(torch.bfloat16).contiguous()


class _Index:
    """Where a mask's active weights are, in the order in which one product reads them, and room for their values.

    Args:
        position: of the active weights in the matrix as it is stored, rising.
        shape: (n_in, n_out).
        in_first: it is stored [n_in, n_out]; else [n_out, n_in].
        group: neighbouring outputs that share their inputs: 1 or 2.
        chunk: inputs that a product holds in the first-level cache.
        unit: bytes of an input there.
        paired: values of each two entries lie together.
        dtype: of the values.
        block: outputs that a product sums at a time; a multiple of 16.
    """

    def __init__(
        self,
        position: Tensor,
        shape: tuple[int, int],
        in_first: bool,
        group: int,
        chunk: int,
        unit: int,
        paired: bool,
        dtype: torch.dtype,
        block: int = BLOCK,
    ) -> None:
        n_in, n_out = shape
        rows = -(-n_in // chunk) * (n_out // group)
        self.c = _Structure(n_in, n_out, group, chunk, block)
        self.start, self.order = torch.empty(rows + 1, dtype=torch.int32), torch.empty(rows, dtype=torch.int32)
        arguments = (position, len(position), in_first, self.c, paired, unit, self.start, self.order)
        library().sparse_structure(*arguments, None, None)
        self.entries = int(self.start[-1])
        self.offset, self.slot = torch.empty(self.entries, dtype=torch.uint16), torch.empty_like(position)
        library().sparse_structure(*arguments, self.offset, self.slot)
        self.value = torch.zeros(self.entries * group, dtype=dtype)
        for name in ("start", "order", "offset", "value"):
            setattr(self.c, name, getattr(self, name).data_ptr())


def _choose_block(n_out: int) -> int:
    """Outputs of a block, at most `BLOCK`, so that every thread has as many."""
    threads = torch.get_num_threads()
    num_blocks = -(-n_out // (BLOCK * threads)) * threads
    return -(-n_out // (16 * num_blocks)) * 16


class SparseWeight:
    """A masked matrix as the kernels read it.

    `pack` its values whenever the weights have changed; a new mask is a new object.

    Args:
        mask: boolean, [n_in, n_out], or [n_out, n_in] if `out_first`.
        out_first: the matrix is stored as torch.nn.Linear stores it.
        bf16: compute in bfloat16 (inputs and weights rounded to it, summed in float32); else in float32.
        block_shape: outputs and inputs of the blocks that the mask consists of; even numbers of outputs share loads.
        kind: of processor; None: this one's.

    Raises:
        ValueError: the mask is not on the CPU, or its blocks do not divide it.
    """

    def __init__(
        self,
        mask: Tensor,
        out_first: bool = False,
        bf16: bool = False,
        block_shape: tuple[int, int] = (1, 1),
        kind: int | None = None,
    ) -> None:
        mask = mask.contiguous()
        self.shape, self.bf16 = mask.shape, bf16
        self.n_out, self.n_in = mask.shape if out_first else mask.shape[::-1]
        if mask.device.type != "cpu" or self.n_out % block_shape[0] or self.n_in % block_shape[1]:
            raise ValueError(
                f"mask of {tuple(mask.shape)} on {mask.device} in blocks of {block_shape}; "
                "allowed: on the CPU, whole blocks of outputs × inputs"
            )
        kind = processor_kind() if kind is None else kind
        self.kind = kind if bf16 else min(kind, AVX512)
        self.narrow = self.kind == BFLOAT16
        self.position = mask.view(-1).nonzero().squeeze(1).to(torch.int32)
        out_group, in_group = (2 - size % 2 for size in block_shape)
        # measured on Zen 4: 20 to 28 KiB of first-level cache
        unit, chunk, gradient_chunk = (128, 160, 48) if self.narrow else (256, 112, 64)
        dtype = torch.bfloat16 if self.narrow else torch.float32
        shape, transposed = (self.n_in, self.n_out), (self.n_out, self.n_in)
        block = _choose_block(self.n_out)
        self.index = _Index(self.position, shape, not out_first, out_group, chunk, unit, self.narrow, dtype)
        self.transposed = _Index(self.position, transposed, out_first, in_group, chunk, unit, self.narrow, dtype)
        self.gradient_index = _Index(
            self.position, shape, not out_first, out_group, gradient_chunk, unit, False, torch.float32, block
        )

    def pack(self, weight: Tensor) -> None:
        """Take over the active weights of a contiguous float32 matrix of the mask's shape.

        Raises:
            ValueError: another kind of matrix.
        """
        weight = check_weight(weight, self.shape)
        threads, position, num = torch.get_num_threads(), self.position, len(self.position)
        for index in (self.index, self.transposed):
            library().sparse_pack(threads, self.bf16, self.narrow, weight, position, index.slot, num, index.value)

    def forward(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Y = X W: [n, n_in] -> [n, n_out] of `dtype` (each float32 or bfloat16); and X as tiles, for `gradient`."""
        return self._product(self.index, x, dtype)

    def backward(self, d: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """dX = dY Wᵀ: [n, n_out] -> [n, n_in] of `dtype`; and dY as tiles, for `gradient`."""
        return self._product(self.transposed, d, dtype)

    def _product(self, index: _Index, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = check_activations(x, index.c.n_in)
        if self.bf16 and not self.narrow:
            x = x.to(torch.bfloat16)  # the bfloat16 kernels round as they load
        if x.stride(1) != 1:
            x = x.contiguous()
        y = torch.empty(len(x), index.c.n_out, dtype=dtype)
        num_bytes = library().sparse_tiles(self.kind, len(x), index.c.n_in)
        tiles = torch.empty(num_bytes, dtype=torch.uint8)  # torch aligns to 64 bytes
        x_bf16, y_bf16 = x.dtype == torch.bfloat16, dtype == torch.bfloat16
        threads = torch.get_num_threads()
        library().sparse_product(
            self.kind, threads, index.c, x, x_bf16, x.stride(0), tiles, y, y_bf16, y.stride(0), len(x)
        )
        return y, tiles

    def gradient(self, x_tiles: Tensor, d_tiles: Tensor, n: int) -> Tensor:
        """dW = Xᵀ dY at the active weights, float32, in the kernels' own order: to be added up, then `scatter`ed."""
        index = self.gradient_index
        gradient = torch.empty(index.entries * index.c.group)
        library().sparse_gradient(self.kind, torch.get_num_threads(), index.c, x_tiles, d_tiles, n, gradient)
        return gradient

    def scatter(self, gradient: Tensor) -> Tensor:
        """`gradient` as a float32 matrix of the mask's shape, exactly 0 at all masked weights."""
        dense = torch.zeros(self.shape)
        slot = self.gradient_index.slot
        library().sparse_unpack(torch.get_num_threads(), gradient, self.position, slot, len(slot), dense)
        return dense


def attention(
    query: Tensor, key: Tensor, value: Tensor, kept: tuple[int, int, int, int], scale: float, kind: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention over the keys that are kept.

    Args:
        query, key, value: [batch, heads, T, size], float32 or bfloat16, of the same strides, the last of them 1;
            size a multiple of 32.
        kept: `window`, `block`, `stride` and `far` of sparse.c's Attention.
        scale: of the scores.
        kind: of processor; None: this one's.

    Returns:
        The output, [batch, heads, T, size]; and of each query its greatest score and its sum of exponentials'
        reciprocal, for the gradient.
    """
    batch, heads, length, size = query.shape
    output = query.new_empty(batch, length, heads, size)
    most, share = torch.empty(2, batch, heads, -(-length // 32) * 32)
    kind = processor_kind() if kind is None else kind
    pattern, strides = _Attention(*query.shape, *kept, scale), _strides(query)
    inputs = (query, key, value, query.dtype == torch.bfloat16, strides)
    library().sparse_attention(kind, torch.get_num_threads(), pattern, *inputs, output, most, share)
    return output.transpose(1, 2), most, share


def attention_gradient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    most: Tensor,
    share: Tensor,
    gradient: Tensor,
    kept: tuple[int, int, int, int],
    scale: float,
    kind: int | None = None,
) -> list[Tensor]:
    """The gradients of query, key and value, [batch, heads, T, size] each, from the output's.

    `attention` took and gave the arguments.
    """
    batch, heads, length, size = query.shape
    if gradient.stride(3) != 1:
        gradient = gradient.contiguous()
    gradients = [query.new_empty(batch, length, heads, size) for _ in range(3)]
    kind = processor_kind() if kind is None else kind
    pattern, strides = _Attention(*query.shape, *kept, scale), _strides(query)
    inputs = (query, key, value, query.dtype == torch.bfloat16, strides, gradient, _strides(gradient), most, share)
    library().sparse_attention_gradient(kind, torch.get_num_threads(), pattern, *inputs, *gradients)
    return [tensor.transpose(1, 2) for tensor in gradients]


def gelu(x: Tensor, d: Tensor | None = None, kind: int | None = None) -> Tensor:
    """GELU of x in its tanh form, or its gradient d gelu'(x); contiguous, float32 or bfloat16."""
    y = torch.empty_like(x)
    kind = processor_kind() if kind is None else kind
    library().sparse_gelu(kind, torch.get_num_threads(), x, d, y, x.dtype == torch.bfloat16, x.numel())
    return y


def cross_entropy_(logits: Tensor, targets: Tensor, kind: int | None = None) -> Tensor:
    """Cross-entropies [n], in float32, of logits [n, vocabulary], which become their gradient.

    Args:
        logits: contiguous, float32 or bfloat16.
        targets: [n], int64.
        kind: of processor; None: this one's.

    Raises:
        ValueError: a target that is not in the vocabulary.
    """
    if not 0 <= targets.min() <= targets.max() < logits.shape[1]:
        raise ValueError(
            f"targets are {int(targets.min())} to {int(targets.max())}; allowed: 0 to {logits.shape[1] - 1}"
        )
    losses = torch.empty(len(logits))
    kind = processor_kind() if kind is None else kind
    threads, bf16 = torch.get_num_threads(), logits.dtype == torch.bfloat16
    library().sparse_cross_entropy(kind, threads, logits, bf16, *logits.shape, targets, losses)
    return losses


def _strides(tensor: Tensor) -> ctypes.Array:
    return STRIDES(*tensor.stride()[:3])
