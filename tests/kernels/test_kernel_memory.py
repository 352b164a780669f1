"""Kernels that get no memory to work in: an error that says so, in one line, and nothing is written."""

import ctypes

import pytest
import torch

from replication.kernels import library, tiles
from replication.kernels.attention import kernel_for
from replication.kernels.row_tiles import GroupWeight
from replication.kernels.tiles import TileWeight
from replication.system.errors import UserError, out_of_memory

THREADS = 2**31 - 1  # each has room of its own: together more than any process can address, so that none is given

pytestmark = pytest.mark.skipif(library.library() is None, reason="the kernels were not built")
needs_tiles = pytest.mark.skipif(not tiles.ask_for_tiles(), reason="no AMX")


def without_memory(monkeypatch, kernel):
    """Expects the one line, of a kernel that is called within."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: THREADS)
    return pytest.raises(MemoryError, match=f"^{kernel} gets no memory to work in$")


@pytest.mark.parametrize("bf16", [False, True])
def test_a_product(bf16, monkeypatch):
    weight = library.SparseWeight(torch.rand(64, 64) < 0.5, bf16=bf16)
    with without_memory(monkeypatch, "sparse_product"):
        weight.forward(torch.randn(100, 64), torch.float32)


def kinds(query):
    every = range(library.processor_kind() + 1)
    return [*every, kernel_for(query, 1.0)] if tiles.ask_for_tiles() else every


def test_attention_and_its_gradient(monkeypatch):
    query, kept = torch.randn(1, 2, 256, 32).bfloat16(), (256, 0, 0, 0)
    for kind in kinds(query):
        output, *softmax = library.attention(query, query, query, kept, 1.0, kind)
        with monkeypatch.context() as patched, without_memory(patched, "sparse_attention"):
            library.attention(query, query, query, kept, 1.0, kind)
        with monkeypatch.context() as patched, without_memory(patched, "sparse_attention_gradient"):
            library.attention_gradient(query, query, query, *softmax, output, kept, 1.0, kind)


def test_a_structure_is_left_as_it_was():
    start, order = torch.full((2,), 7, dtype=torch.int32), torch.full((1,), 7, dtype=torch.int32)
    huge = library._Structure(n_in=2**31, n_out=2**31, group=1, chunk=64, block=64)
    with pytest.raises(MemoryError, match="sparse_structure"):
        library.library().sparse_structure(start, 0, True, huge, False, 4, start, order, None, None)
    assert start.tolist() == [7, 7] and order.tolist() == [7]


@needs_tiles
def test_products_by_tiles(monkeypatch):
    mask = torch.ones(2048, 2048, dtype=torch.bool)
    blocks, groups, x = TileWeight(mask, False, 32), GroupWeight(mask, False), torch.randn(33, 2048)
    with monkeypatch.context() as patched, without_memory(patched, "sparse_tile_product"):
        blocks.forward(x, torch.float32)
    with monkeypatch.context() as patched, without_memory(patched, "sparse_group_product_back"):
        groups.backward(x, torch.float32)
    wide = tiles._Blocks.from_buffer_copy(blocks.backward_rows.c)
    wide.n_in = 2**50
    with pytest.raises(MemoryError, match="sparse_tile_gradient"):
        library.library().sparse_tile_gradient(1, ctypes.byref(wide), x.bfloat16(), x.bfloat16(), 33, torch.empty(1))


def test_a_command_says_it_as_it_says_any_lack_of_memory(monkeypatch):
    query = torch.randn(1, 2, 256, 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: THREADS)
    line = r"^out of memory \(sparse_attention gets no memory to work in\); allowed: [^\n]*$"
    with pytest.raises(UserError, match=line), out_of_memory():
        library.attention(query, query, query, (256, 0, 0, 0), 1.0)
