"""The bench: its ratios by hand, its report from made-up measurements, and a quick run of its parts."""

import json
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.bench import headlines, layer_report, layers, measure, ratios, report, run
from replication.bench.profile import part_of
from replication.kernels.library import library
from replication.system.errors import UserError

needs_kernels = pytest.mark.skipif(library() is None, reason="the kernels were not built: no C compiler")


def test_contenders_take_turns_and_warm_up_does_not_count():
    clock, calls = count(1), []
    turns = {name: lambda name=name: calls.append(name) or float(next(clock)) for name in "ab"}
    assert measure.alternate(turns, rounds=2, warmup=1) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert calls == ["a", "b"] * 3


def test_a_ratio_is_the_median_over_rounds_and_its_spread_their_quartiles():
    assert ratios.compare([([2.0, 4.0, 6.0], [1.0, 2.0, 1.0])]) == pytest.approx(
        {"ratio": 2.0, "low": 2.0, "high": 4.0}
    )
    two = ratios.compare([([8.0], [1.0]), ([2.0], [1.0])])  # a geometric mean over the pairs
    assert two == pytest.approx({"ratio": 4.0, "low": 4.0, "high": 4.0})


def test_whole_runs_are_compared_by_their_sums():
    assert ratios.compare_runs([4.0] * 10, [1.0] * 10) == pytest.approx({"ratio": 4.0, "low": 4.0, "high": 4.0})
    assert ratios.compare_runs([1.0, 7.0], [1.0, 3.0])["ratio"] == 2.0


def test_a_runs_schedule_is_no_part_of_its_spread():
    """Twenty dense steps, then twenty that are eight times as fast: drawn within each twenty, nothing varies."""
    value = ratios.compare_runs([8.0] * 40, [8.0] * 20 + [1.0] * 20)
    assert value == pytest.approx({"ratio": 320 / 180, "low": 320 / 180, "high": 320 / 180})


SECONDS = st.floats(1e-6, 1e4)
ROUNDS = st.integers(1, 30).flatmap(lambda n: st.tuples(*[st.lists(SECONDS, min_size=n, max_size=n)] * 4))


@given(ROUNDS)
@settings(deadline=None, max_examples=200)
def test_a_ratio_lies_within_its_own_spread_whatever_was_measured(rounds):
    a, b, c, d = rounds
    for value in (ratios.compare([(a, b)]), ratios.compare([(a, b), (c, d)]), ratios.compare_runs(a, b)):
        assert 0 < value["low"] <= value["ratio"] <= value["high"]
    share = ratios.quartiles(np.array(a))
    assert share["low"] <= share["ratio"] <= share["high"]


def test_topology_share_by_hand():
    seconds = [1.0] * 60
    for step in (20, 40):
        seconds[step], seconds[step + 1] = 1.5, 1.25  # 0.75 s more than two ordinary steps
    share = report.topology_share(seconds, update_freq=20, per=100)
    assert share["ratio"] == pytest.approx(0.75 / 100.75)


def made_up(folder):
    """Every part: ours takes half as long as its dense rival, and dense as long as the plain loop; `auto` half of that.

    Written into the folder of a kind of processor, which is returned.
    """
    folder = folder / "maker-family-amx"
    folder.mkdir(exist_ok=True)
    names = [
        "dense fp32",
        "dense bf16",
        *(f"{kind} {precision}" for kind in ("unstructured", "block22") for precision in ("fp32", "bf16")),
        *(f"{kind} bf16" for kind in layers.TILES),
        "torch.sparse CSR fp32",
        "sparselab fp32",
    ]
    rows = {
        "layers": [
            {"profiles": ["paper"], "n_in": 8, "n_out": 8, "tokens": 4, "density": density, "product": product}
            | {"contender": name, "seconds": [0.5 if name[0] in "ub" else 1.0] * 3}
            for density in layers.DENSITIES
            for product in layers.PRODUCTS
            for name in names
        ],
        "steps": [
            {"width": 256, "precision": precision, "tokens": 100, "contender": name}
            | {"seconds": [1.0 if name != "transformers Trainer" else 2.0] * 3, "peak_memory_bytes": 2**30}
            for precision in ("fp32", "bf16")
            for name in report.DENSE
        ]
        + [
            {"width": 64, "precision": "fp32", "tokens": 100, "contender": name}
            | {"seconds": [seconds] * 3, "peak_memory_bytes": 2**30}
            for name, seconds in (("dense", 1.0), ("MST ultra, masked", 0.5), ("MST ultra, auto", 0.25))
        ],
        "runs": [
            {"width": 768, "context": 1024, "update_freq": 20, "contender": name}
            | {"seconds": [2.0 if name.startswith("dense") else 1.0] * 60, "peak_memory_bytes": 1}
            for name in (
                "dense fp32",
                "dense bf16",
                "MST fp32",
                "MST bf16",
                "MST 2×2 blocks bf16",
                "MST 32×32 blocks bf16",
            )
        ],
        "densities": [
            {"width": 768, "precision": precision, "block_shape": block, "contender": name}
            | {"seconds": [1.0 if name == "dense" else 0.2 + float(name)] * 3, "peak_memory_bytes": 1}
            for precision in ("fp32", "bf16")
            for block in ("[1,1]", "[2,2]")
            for name in ("dense", "0.1", "0.2", "0.5")
        ],
    }
    rows["profile"] = [
        {"width": width, "precision": "fp32", "contender": name, "part": part, "seconds": [seconds]}
        for width in (64, 768)
        for name in ("dense", "MST ultra")
        for part, seconds in (("linear layers", 0.25), ("head and loss", 0.05), ("rest", 0.2))
    ]
    rows["metrics"] = [
        {"profile": "small", "contender": "mst", "steps": 300, "updates": 30, "metrics_seconds": 0.06, "seconds": [12]}
    ]
    rows["processes"] = [
        {"width": 64, "method": "dense", "contender": way, "seconds": [seconds] * 3}
        for way, seconds in (("DDP", 0.5), ("tensor by tensor", 1.0))
    ]
    machine = {"processor": "made up", "threads": 2, "versions": {"torch": "0"}, "git": "abc"}
    for part, measured in rows.items():
        (folder / f"{part}.json").write_text(json.dumps({"machine": machine, "rows": measured}))
    return folder


def test_report_has_every_headline_and_picture(tmp_path):
    folder = made_up(tmp_path)
    page = report.write_report(folder)
    summary = json.loads((folder / "summary.json").read_text())
    wanted = {
        f"layer_{kind}_{sparsity}_vs_{rival}": 2.0
        for kind in ("unstructured", "block22")
        for sparsity in (80, 90)
        for rival in ("fp32", "bf16", "sparselab")
    }
    wanted |= {f"layer_{kind}_{sparsity}_vs_bf16": 2.0 for kind in layers.TILES for sparsity in (80, 90)}
    wanted |= {
        "auto_vs_masked_min": 2.0,
        "width64_ultra_vs_dense_fp32": 4.0,
        "run_mst_block3232_vs_dense_bf16": 2.0,
        "run_mst_vs_dense_fp32": 2.0,
        "run_mst_vs_dense_bf16": 2.0,
        "run_mst_block22_vs_dense_bf16": 2.0,
        "dense_vs_plain_loop": 1.0,
        "dense_vs_hf_trainer": 2.0,
        "topology_share": 0.0,
    }
    assert {name: value for name, value in summary.items() if name != "spread"} == pytest.approx(wanted)
    assert summary["spread"].keys() == wanted.keys() == headlines.HEADLINES.keys()
    assert (folder / "bench.md").read_text() == page + "\n"
    assert "0.20" in page.split("## (e)")[1] and "1.00" in page.split("## (e)")[1]  # intercept and slope
    assert sorted(file.name for file in folder.glob("*.png")) == [
        "densities.png",
        "layers.png",
        "profile.png",
        "runs.png",
        "steps.png",
    ]
    (metrics,) = [line for line in page.split("## (g)")[1].splitlines() if "mst" in line]
    assert metrics.split() == ["|", "mst", "|", "30", "|", "2.0", "|", "0.50%", "|"]
    assert all(part in page.split("## (j)")[1] for part in ("1000.0", "500.0", "2.00×"))
    assert "faster 2.5× at width 64 in fp32, 2.5× at width 768 in fp32" in page.split("## (f)")[1]  # 0.5 / 0.2
    assert page.split("## (f)")[1].count("| 500.0 |") == 4
    assert all(picture.name in page for picture in folder.glob("*.png"))
    captions = [
        line for line in page.splitlines() if line.startswith("*maker-family-amx (made up), 2 threads; commit abc;")
    ]
    assert len(captions) == page.count("\n## (") == page.count("|:-")  # one for each table


@needs_kernels
@pytest.mark.slow
def test_a_quick_bench_of_layers(tmp_path):
    page = run.bench(["layers"], tmp_path, tmp_path / "data", quick=True)
    (file,) = tmp_path.glob("*/layers.json")
    measured = json.loads(file.read_text())
    assert measured["machine"]["threads"] >= 1 and measured["machine"]["kind"] == file.parent.name
    assert {row["product"] for row in measured["rows"]} == set(layers.PRODUCTS)
    assert all(len(row["seconds"]) == 3 and min(row["seconds"]) > 0 for row in measured["rows"])
    assert file.parent.name in page and (tmp_path / "README.md").read_text() == page + "\n"
    detail = (file.parent / "bench.md").read_text()
    assert "(a) Products of one layer" in detail and "(c) Whole runs" not in detail


@needs_kernels
def test_every_contender_computes_the_same_product():
    contenders = layers.build(32, 48, 64, density=1.0)
    for product in ("forward", "dX", "dW"):
        wanted = contenders["dense fp32"][product]()
        for name, products in contenders.items():
            if not name.startswith("sparselab"):  # which draws weights of its own
                found = products[product]()
                found = found.to_dense().T if "CSR" in name else found[0] if isinstance(found, tuple) else found
                assert (found.float() - wanted).norm() <= 0.01 * wanted.norm(), (name, product)


def test_headlines_speak_of_gpt2_small_alone(tmp_path):
    rows = json.loads((made_up(tmp_path) / "layers.json").read_text())["rows"]
    assert layer_report.summarise_layers([row | {"profiles": ["smoke"]} for row in rows]) == {}


@needs_kernels
@pytest.mark.slow
def test_a_quick_bench_of_training(tmp_path):
    parts = ["steps", "densities", "runs", "profile", "metrics", "processes"]
    run.bench(parts, tmp_path, tmp_path / "data", quick=True)
    (page,) = [file.read_text() for file in tmp_path.glob("*/bench.md")]
    assert all(
        part in page
        for part in ("(b) Training steps", "(c) Whole runs", "(e) Step time", "(g) What the metrics", "(j) Two")
    )


def test_a_call_belongs_to_the_outermost_part_that_it_is_within():
    class Event:
        def __init__(self, name, parent=None):
            self.name, self.cpu_parent = name, parent

    loss = Event("_LinearCrossEntropy")
    assert part_of(loss) == part_of(Event("aten::mm", Event("aten::matmul", loss))) == "head and loss"
    assert (
        part_of(Event("_SparseLinearBackward", Event("autograd::engine")))
        == part_of(Event("aten::mm"))
        == "linear layers"
    )
    assert part_of(Event("aten::add")) == "rest"


def test_an_unknown_part_is_one_line(tmp_path):
    with pytest.raises(UserError, match="--only is 'layer'; the nearest valid one is 'layers'"):
        run.bench(["layer"], tmp_path, tmp_path)


def test_auto_is_compared_where_it_gains_least_and_what_was_not_measured_is_no_headline():
    def rows(**contenders):
        return [
            {"width": width, "precision": "bf16", "contender": name, "seconds": seconds}
            for name, widths in contenders.items()
            for width, seconds in widths.items()
        ]

    dense = {name: {64: [1.0], 256: [1.0]} for name in ("dense", "plain loop", "transformers Trainer")}
    masked, auto = {64: [3.0, 4.0, 5.0], 256: [8.0] * 3}, {64: [2.0] * 3, 256: [1.0] * 3}
    others = {"MST ultra, masked": masked, "MST ultra, auto": auto}
    least = report.summarise_steps(rows(**dense, **others))["auto_vs_masked_min"]
    assert least == pytest.approx({"ratio": 2.0, "low": 1.75, "high": 2.25})
    assert report.summarise_steps(rows(**dense)).keys() == {"dense_vs_plain_loop", "dense_vs_hf_trainer"}
