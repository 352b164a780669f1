"""The products of one masked layer: ours against torch's dense and CSR ones, and against sparselab's."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from replication.bench.measure import alternate, clock
from replication.config.profiles import load_config
from replication.kernels.engine import keep_memory
from replication.kernels.library import SparseWeight
from replication.kernels.linear import Execution, sparse_linear
from replication.kernels.tiles import pack
from replication.model.gpt2 import select_masked_shapes
from replication.sparsity.grid import from_blocks

PROFILES = ("smoke", "small", "text", "paper")  # paper: GPT-2 small
DENSITIES = (0.5, 0.2, 0.1, 0.05)
# Outputs and inputs of the blocks that are multiplied as tiles of bf16, where the processor has tiles.
TILES = {"block1616": (16, 16), "block3232": (32, 32), "block321": (32, 1)}
TOKENS, ELEMENTS = 4096, 2**25  # of a product: fewer tokens for a matrix so large that its output would be
PRODUCTS = ("forward", "dX", "dW", "total")

Products = dict[str, Callable[[], Any]]


def measure(rounds: int, profiles: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each shape, density, product and contender: seconds of every round."""
    keep_memory()  # as in training
    for (n_in, n_out), users in shapes(profiles).items():
        tokens = min(TOKENS, max(512, ELEMENTS // max(n_in, n_out) // 512 * 512))
        for density in DENSITIES:
            contenders = build(n_in, n_out, tokens, density)
            for product in PRODUCTS:
                turns = {name: clock(products[product]) for name, products in contenders.items() if product in products}
                for name, seconds in alternate(turns, rounds).items():
                    yield {
                        "profiles": users,
                        "n_in": n_in,
                        "n_out": n_out,
                        "tokens": tokens,
                        "density": density,
                        "product": product,
                        "contender": name,
                        "seconds": seconds,
                    }


def shapes(profiles: Sequence[str]) -> dict[tuple[int, int], list[str]]:
    """(n_in, n_out) -> profiles that have such a masked matrix; the head is a product to the vocabulary."""
    found: dict[tuple[int, int], list[str]] = {}
    for profile in profiles:
        for name, shape in select_masked_shapes(load_config(profile, "mst", 0)).items():
            users = found.setdefault(shape[::-1] if "wte" in name else shape, [])
            if profile not in users:
                users.append(profile)
    return found


def build(n_in: int, n_out: int, tokens: int, density: float) -> Mapping[str, Products]:
    """The contenders, each with its products.

    `total` is forward and backward through autograd, from and to float32 weights.
    """
    generator = torch.Generator().manual_seed(0)
    x, d, weight = (
        torch.randn(shape, generator=generator) for shape in ((tokens, n_in), (tokens, n_out), (n_in, n_out))
    )
    contenders = {f"dense {precision}": _dense(x, d, weight, precision) for precision in ("fp32", "bf16")}
    for kind, (outputs, inputs) in ({"unstructured": (1, 1), "block22": (2, 2)} | TILES).items():
        block = inputs, outputs  # as the matrix is stored
        mask = from_blocks(torch.rand(n_in // inputs, n_out // outputs, generator=generator) < density, block)
        if kind in TILES and not _is_tiled(mask, (n_in, n_out), block):
            continue
        contenders |= {
            f"{kind} {precision}": _ours(x, d, weight * mask, mask, block, precision)
            for precision in ("fp32", "bf16")
            if precision == "bf16" or kind not in TILES
        }
        if kind == "unstructured":
            contenders["torch.sparse CSR fp32"] = _csr(x, d, weight * mask)
    if importlib.util.find_spec("sparselab"):
        contenders["sparselab fp32"] = _sparselab(x, d, density)
    return contenders


def _is_tiled(mask: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> bool:
    return tuple(mask.shape) == shape and not isinstance(pack(mask, False, True, block), SparseWeight)


def _dtype(precision: str) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def _through_autograd(layer: Callable[[Tensor], Tensor], x: Tensor, d: Tensor) -> Callable[[], None]:
    x = x.clone().requires_grad_(True)

    def total() -> None:
        layer(x).backward(d)
        x.grad = None

    return total


def _dense(x: Tensor, d: Tensor, weight: Tensor, precision: str) -> Products:
    dtype = _dtype(precision)
    x, d, w, parameter = x.to(dtype), d.to(dtype), weight.to(dtype), weight.clone().requires_grad_(True)

    def layer(x: Tensor) -> Tensor:
        parameter.grad = None
        return x @ parameter.to(dtype)

    return {
        "forward": lambda: x @ w,
        "dX": lambda: d @ w.T,
        "dW": lambda: x.T @ d,
        "total": _through_autograd(layer, x, d),
    }


def _ours(x: Tensor, d: Tensor, weight: Tensor, mask: Tensor, block: tuple[int, int], precision: str) -> Products:
    dtype, execution = _dtype(precision), Execution()
    x, d, parameter = x.to(dtype), d.to(dtype), weight.clone().requires_grad_(True)
    sparse = execution.sparse = pack(mask, False, precision == "bf16", block)
    sparse.pack(weight)
    x_tiles, d_tiles = sparse.forward(x, dtype)[1], sparse.backward(d, dtype)[1]

    def layer(x: Tensor) -> Tensor:
        parameter.grad = None
        sparse.pack(parameter.detach())
        return sparse_linear(x, parameter, execution)

    return {
        "forward": lambda: sparse.forward(x, dtype),
        "dX": lambda: sparse.backward(d, dtype),
        "dW": lambda: sparse.scatter(sparse.gradient(x_tiles, d_tiles, len(x))),
        "total": _through_autograd(layer, x, d),
    }


def _csr(x: Tensor, d: Tensor, weight: Tensor) -> Products:
    """In the layout that suits torch.sparse: features before tokens, without the cost of transposing them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR is in beta
        w, transposed = weight.T.to_sparse_csr(), weight.to_sparse_csr()
    x, d = x.T.contiguous(), d.T.contiguous()
    products: Products = {
        "forward": lambda: w @ x,
        "dX": lambda: transposed @ d,
        "dW": lambda: torch.sparse.sampled_addmm(w, d, x.T, beta=0.0),
    }
    return products | {"total": lambda: [product() for product in products.values()]}


def _sparselab(x: Tensor, d: Tensor, density: float) -> Products:
    from sparselab import SparseLinear

    layer = SparseLinear(x.shape[1], d.shape[1], bias=False, sparsity=1 - density)

    @torch.no_grad()
    def forward() -> Tensor:
        return layer(x)

    def fresh(x: Tensor) -> Tensor:
        layer.zero_grad()
        return layer(x)

    return {"forward": forward, "total": _through_autograd(fresh, x, d)}
