"""What of a GPU can be checked without one: shapes, the compiled graph, attention's tiles, Triton's kernels, words."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import masking_utils

from replication.bench import gpu_check, gpu_report
from replication.cli import main
from replication.config.fields import AttentionConfig
from replication.kernels import linear
from replication.methods import build_algorithm
from replication.model.attention import set_attention_pattern
from replication.model.gpt2 import build_model, select_masked_shapes
from replication.model.patterns import PATTERNS, pattern_mask

ROOT = Path(__file__).parents[2]
ELSEWHERE = torch.device("meta")  # no CPU: what it computes, and how, is what a GPU would; there are no numbers


def on_meta(config, pattern="dense"):
    model = build_model(config, 0).to(ELSEWHERE)
    set_attention_pattern(model, pattern, config.attention)
    return model, torch.zeros(2, config.model.n_positions, dtype=torch.long, device=ELSEWHERE)


@pytest.mark.parametrize("pattern", ["dense", "sparse"])
def test_elsewhere_than_on_a_cpu_every_gradient_has_its_weights_shape(pattern, tiny, monkeypatch):
    monkeypatch.setattr(linear, "_precision", lambda x: x.dtype)  # this device knows no autocast
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda positions: None)  # by their numbers
    model, tokens = on_meta(tiny("dense"), pattern)
    hidden = model.transformer(input_ids=tokens, use_cache=False).last_hidden_state
    loss = linear.linear_cross_entropy(hidden, model.transformer.wte.weight, tokens, linear.Execution())
    loss.backward()
    assert loss.shape == () and loss.device == ELSEWHERE
    for param in model.transformer.parameters():
        assert not param.requires_grad or (param.grad.shape, param.grad.device) == (param.shape, ELSEWHERE)


@pytest.mark.parametrize("method", ["static", "set", "rigl", "mst"])
def test_masks_are_where_their_weights_are(method, tiny):
    config = tiny(method, "sparsity.block_shape=[2,2]")
    algorithm, names = build_algorithm(config), select_masked_shapes(config)
    algorithm._first_mask = lambda magnitudes, nnz: torch.ones_like(magnitudes, dtype=torch.bool)  # which needs numbers
    model, _ = on_meta(config)
    algorithm.apply(model, lambda name, _: name in names)
    assert {name: mask.shape for name, mask in algorithm.masks.items()} == names
    assert all(mask.device == ELSEWHERE for mask in algorithm.masks.values())


def compiled(config, pattern="dense"):
    """(graphs, breaks between them, calls of attention) of the compiled model."""
    model, tokens = on_meta(config, pattern)
    torch.compiler.reset()
    explained = torch._dynamo.explain(model.transformer)(input_ids=tokens, use_cache=False)
    calls = [
        node
        for graph in explained.graphs
        for node in graph.graph.nodes
        if node.target is torch.nn.functional.scaled_dot_product_attention
    ]
    return explained.graph_count, explained.graph_break_count, calls


def test_the_compiled_model_is_one_graph_whose_attention_takes_no_mask(tiny):
    graphs, breaks, calls = compiled(tiny("dense"))
    assert (graphs, breaks, len(calls)) == (1, 0, 2)
    assert all(call.kwargs["attn_mask"] is None and call.kwargs["is_causal"] for call in calls)


def test_under_a_pattern_it_is_one_graph_too(tiny):
    graphs, breaks, calls = compiled(tiny("mst"), "sparse")
    assert (graphs, breaks) == (1, 0) and all(call.kwargs["attn_mask"] is not None for call in calls)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_flex_attention_keeps_the_patterns_pairs_and_no_empty_tile(pattern):
    from torch.nn.attention.flex_attention import create_mask

    from replication.bench.flex import block_mask, mask_mod, tiles_kept

    length, spans = 512, AttentionConfig(window=100, stride=200).spans(512)
    kept = torch.from_numpy(pattern_mask(pattern, length, *spans))
    assert torch.equal(create_mask(mask_mod(pattern, *spans), 1, 1, length, length, device="cpu")[0, 0], kept)
    tiles = kept.view(4, 128, 4, 128).any(3).any(1)
    assert tiles_kept(block_mask(pattern, length, *spans, device=torch.device("cpu"))) == tiles.sum()


def test_tiles_by_hand():
    from replication.bench.flex import block_mask, tiles_kept

    cpu = torch.device("cpu")
    assert tiles_kept(block_mask("dense", 1024, 128, 128, cpu)) == 8 * 9 / 2
    assert tiles_kept(block_mask("local", 1024, 128, 128, cpu)) == 8 + 7  # its own tile, and the one before
    assert tiles_kept(block_mask("sparse", 1024, 128, 128, cpu)) == 8 * 9 / 2  # a pair in each tile: nothing is saved


INTERPRETED = """
import json, sys
import torch
from replication.bench.triton_blocks import BLOCKS, BlockLayout, block_linear
from replication.sparsity.grid import from_blocks
found = {}
for block in BLOCKS:
    for name, grid in {
        "some": [[1, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0]], "none": [[0, 0], [0, 0]], "all": [[1, 1]]
    }.items():
        grid = torch.tensor(grid, dtype=torch.bool)
        mask, draw = from_blocks(grid, (block, block)), torch.Generator().manual_seed(block)
        x, weight = torch.randn(2, 65, len(mask), generator=draw), torch.randn(mask.shape, generator=draw) * mask
        d = torch.randn(2, 65, mask.shape[1], generator=draw)
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight)]
        y = block_linear(*leaves, BlockLayout(mask, block))
        y.backward(d)
        wanted = x @ weight, d @ weight.T, (x.flatten(0, 1).T @ d.flatten(0, 1)) * mask
        pairs = zip(("forward", "dX", "dW"), (y, leaves[0].grad, leaves[1].grad), wanted)
        found |= {f"{block} {name} {key}": (ours - theirs).abs().max().item() for key, ours, theirs in pairs}
json.dump(found, sys.stdout)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install triton")
def test_block_sparse_products_are_the_masked_ones_in_tritons_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 2 * 3 * 3 and max(errors.values()) < 1e-4, errors


def test_without_a_gpu_the_check_says_so_in_one_line(tmp_path, capsys):
    assert main(["bench", "gpu", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: gpu-check found no GPU") and said.count("\n") == 1
    assert main(["bench", "gpu", "--only", "tests,stepps", "--out", str(tmp_path)]) == 2
    assert "'stepps'" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_part_that_fails_keeps_its_rows_and_the_other_parts(tmp_path, monkeypatch, capsys):
    def failing():
        yield {"test": "one", "outcome": "passed", "seconds": 1.0}
        raise MemoryError("no room\nat all")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "gpu_machine", lambda: MACHINE)
    monkeypatch.setattr(gpu_check, "PARTS", {"tests": failing, "blocks": lambda: made_up()["blocks"]["rows"]})
    page, failures = gpu_check.gpu_check([], tmp_path)
    found = json.loads((tmp_path / "made-up" / "gpu.json").read_text())
    assert failures == ["tests: MemoryError: no room"] and len(found["tests"]["rows"]) == 1
    assert "It did not come to its end: MemoryError: no room" in page and "2.00×" in page
    gpu_check.gpu_check(["blocks"], tmp_path)
    assert json.loads((tmp_path / "made-up" / "gpu.json").read_text())["tests"] == found["tests"]
    assert (tmp_path / "made-up" / "gpu.md").read_text() == page + "\n"


def test_outcomes_are_read_from_pytests_report(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a" time="1.5"/>'
        '<testcase name="b" time="2"><failure message="no"/></testcase>'
        '<testcase name="c" time="0"><skipped/></testcase></testsuite></testsuites>'
    )
    rows = list(gpu_check.outcomes(report))
    assert [row["outcome"] for row in rows] == ["passed", "failed", "skipped"]
    assert rows[0]["seconds"] == 1.5 and rows[1]["message"] == "no" and "message" not in rows[0]
    assert gpu_check._failures("tests", {"rows": rows}) == ["b failed"]


MACHINE = {"versions": {"torch": "1"}, "cuda": "2", "driver": "3", "gpus": 1, "gpu": "made up", "git": "abc"}


def made_up():
    """Of each part what it would have measured."""
    step = {"tokens": 100, "precision": "bf16", "peak_flops": 1e14, "peak_memory_bytes": 2**30, "seconds": [0.5] * 3}
    step |= {"tokens_per_second": 200.0, "mfu": 0.5, "dense_mfu": 0.5, "sparsity": 0.0}
    attention = [
        {"length": length, "pattern": pattern, "contender": contender, "pairs": 0.5, "tiles": 0.25, "seconds": seconds}
        for length, flex in ((1024, 0.02), (2048, 0.005), (4096, 0.005))
        for pattern, contender, seconds in (("dense", "SDPA", 0.01), ("local", "FlexAttention", flex))
    ]
    blocks = [
        {
            "n_in": 8,
            "n_out": 4,
            "tokens": 9,
            "contender": name,
            "sparsity": sparsity,
            "product": product,
            "seconds": own,
        }
        for name, sparsity, own in (("dense", 0.0, 1.0), ("32×32", 0.9, 0.5))
        for product in gpu_report.PRODUCTS
    ]
    rows = {"steps": [step | {"contender": "dense"}, step | {"contender": "MST ultra", "seconds": [0.25]}]}
    rows |= {"attention": attention, "blocks": blocks, "tests": []}
    return {part: {"machine": MACHINE, "total_seconds": 1.0, "rows": own} for part, own in rows.items()}


def test_the_report_by_hand():
    page = gpu_report.render(made_up())
    lines = [line.split() for line in page.splitlines() if line.startswith("|")]
    assert lines[3][:14] == ["|", "MST", "ultra", "|", "0%", "|", "250.0", "|", "200", "|", "2.00", "|", "50%", "|"]
    assert "local: FlexAttention beats dense SDPA from 2048 tokens on." in page
    assert "10.00 ms" in page and "0.50×" in page and "Nothing of tests" in page
    assert "| 8 → 4    |    32×32 |        90% |     2.00× | 2.00× | 2.00× | 2.00× |" in page
    assert page.count("1 × made up, torch 1, CUDA 2, driver 3, abc; 1 s.") == 4


def test_the_page_leads_to_the_tables_of_what_was_measured():
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    measured = list((ROOT / "results" / "reference" / "bench").glob("*/gpu.json"))
    assert measured
    for file in measured:
        table = file.with_suffix(".md")
        assert f"(../{table.relative_to(ROOT).as_posix()})" in page
        assert table.read_text(encoding="utf-8") == gpu_report.render(json.loads(file.read_text())) + "\n"


def test_only_where_there_is_no_cpu_is_padding_all_that_is_masked(tiny):
    """A CPU's compiled graph keeps its mask, and so its rounding."""
    from replication.model.attention import _mask

    how = {"batch_size": 1, "q_length": 4, "kv_length": 4, "allow_is_causal_skip": False}
    assert _mask(**how, attention_mask=None, device=ELSEWHERE) is None
    assert _mask(**how, attention_mask=None, device=torch.device("cpu")).shape == (1, 1, 4, 4)
    padding = torch.ones(1, 4, dtype=torch.bool, device=ELSEWHERE)
    assert _mask(**how, attention_mask=padding, device=ELSEWHERE).shape == (1, 1, 4, 4)
