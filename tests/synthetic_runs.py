"""Run folders as a trainer would leave them, made up in milliseconds: the input of the analysis tests."""

import json
from pathlib import Path

import numpy as np

from replication.analysis.comparable import Facts
from replication.config.profiles import load_config, profile_arms
from replication.runs.folder import RunFolder
from replication.system.files import write_json

# Forward FLOPs per token of a made-up model.
BLOCK, ATTENTION, HEAD = {"full": 1_000, "causal": 1_000}, {"full": 200, "causal": 100}, 400
CONVENTIONS = {
    "head_counted_full": ("block_", "attention_full", "head_"),
    "head_counted_causal": ("block_", "attention_causal", "head_"),
    "head_excluded_full": ("block_", "attention_full"),
    "head_excluded_causal": ("block_", "attention_causal"),
    "blocks_only": ("block_",),
    "mean_density": ("masked_active",),
}
STEPS, LOG_EVERY, EVALUATE_EVERY, UPDATE_EVERY, TOKENS = 400, 5, 40, 20, 512
LAYERS = {
    f"transformer.h.{block}.{name}.weight": shape
    for block in (0, 1)
    for name, shape in (("attn.c_attn", (16, 48)), ("mlp.c_fc", (16, 64)))
}
PHASES = {"warm-up": 0.1, "ultra-sparsification": 0.7, "restoration": 1.0}
LOSSES = {
    "dense": 3.88,
    "dense_nine_tenths": 3.92,
    "dense_one_layer": 3.96,
    "dense_narrow": 4.05,
    "dense_shallow": 4.08,
    "dense_narrow_dense_head": 4.02,
    "dense_shallow_dense_head": 4.04,
    "dense_shallow_counted": 3.97,
    "static": 4.10,
    "rigl": 4.13,
    "mst": 4.02,
    "set_4x": 4.20,
    "mst_dense_head": 3.90,
}
SMALLER = ("dense_narrow", "dense_shallow")  # that cost what MST of their reading does, as sparse rivals at 4× do
TUNING = """arm,label,train.learning_rate,sparsity.drop_fraction,sparsity.update_freq,\
seeds,first_seed,validation_loss,flops,seconds,chosen
dense,dense,0.003,,,1,4.1,,100,2,False
dense,dense,0.006,,,1,4.0,4.05,100,2,True
mst_dense_head,"MST, dense head",0.003,0.03,10,1,4.2,,25,1,False
mst_dense_head,"MST, dense head",0.003,0.01,10,1,4.15,4.1,25,1,True
"""


def write_runs(results: Path, losses: dict[str, list[float]], profile: str = "small") -> None:
    """One finished run per arm and final validation loss; the loss's place in its list is the seed."""
    for arm, values in losses.items():
        for seed, loss in enumerate(values):
            write_run(results / profile / arm / f"seed-{seed}", arm, seed, loss)


def write_table_of_runs(results: Path, seeds: int = 3) -> None:
    """Every arm of Table 1 with plausible losses, and the plan at GPT-2-small scale."""
    noise = np.random.default_rng(0).normal(0, 0.01, (len(LOSSES), seeds))
    write_runs(results, {arm: list(loss + row) for (arm, loss), row in zip(LOSSES.items(), noise)})
    (results / "small" / "tuning.csv").write_text(TUNING, encoding="utf-8")
    write_json(
        results / "paper" / "plan.json", {arm: RunFolder(results / "small" / arm / "seed-0").flops() for arm in LOSSES}
    )


def write_run(folder: Path, arm: str, seed: int, final_loss: float, head_sparse: bool = True) -> None:
    folder.mkdir(parents=True)
    run, (profile, name) = RunFolder(folder), folder.parts[-3:-1]
    known = name in profile_arms(profile)
    method = "dense" if name.startswith("dense") else "mst"
    config = load_config(profile, name if known else method, seed).to_dict() | {"arm": name}
    if name == "dense_quarter":
        config["train"]["steps_fraction"] = 0.25
    steps = round(STEPS * config["train"]["steps_fraction"])
    run.write_config(config)
    write_json(
        folder / "environment.json",
        {
            "processor": "made up",
            "device": "cpu",
            "processes": 1,
            "threads": 2,
            "precision": "fp32",
            "kernels": "auto",
            "final_loss_over": "whole split",
            "git": "abc1234",
            "versions": {"torch": "2.13"},
            "shards": {"train": "0" * 64, "validation": "1" * 64},
        },
    )
    head_masked = head_sparse and not arm.endswith(("_dense_head", "_counted"))
    rows, phases = _train(arm, steps, final_loss, head_masked, np.random.default_rng(seed))
    run.append("metrics.jsonl", rows)
    total = {name: sum(phase[name] for phase in phases.values()) for name in rows[-1]["flops"]}
    sparsity = [row["sparsity"] for row in rows]
    write_json(
        folder / "flops.json",
        {
            "conventions": _conventions(total, head_masked),
            "components": total,
            "phases": phases,
            "steps": steps,
            "tokens": steps * TOKENS,
            "mean_sparsity": float(np.mean(sparsity)),
            "final_sparsity": sparsity[-1],
        },
    )
    write_json(
        folder / "eval" / "embedded_lastword.json",
        _lm_eval("embedded_lastword", {"acc": 1 / final_loss, "perplexity": np.exp(final_loss)}),
    )
    write_json(
        folder / "eval" / "embedded_code.json",
        _lm_eval(
            "embedded_code", {"word_perplexity": np.exp(2 * final_loss), "byte_perplexity": 3.0, "bits_per_byte": 1.6}
        ),
    )
    if not arm.startswith("dense"):
        _write_topology(run, arm, steps, sparsity[-1], np.random.default_rng(seed))
    run.write_status("finished", step=steps, seconds=20.0 + seed, tokens_per_second=9_000.0 + seed)


def edit_json(file: Path, key: str, value: object) -> None:
    """Set a dotted key of one of a run's JSON files, as if it had been written so (by a version without checksums)."""
    folder = file.parent.parent if file.parent.name == "eval" else file.parent
    for path in (file, folder / "status.json"):
        whole = json.loads(path.read_text())
        for checksum in ("seal", "sha256"):
            whole.pop(checksum, None)
        write_json(path, whole)
    whole = json.loads(file.read_text())
    *path, last = key.split(".")
    part = whole
    for name in path:
        part = part[name]
    part[last] = value
    write_json(file, whole)


def without_mean_density(folder: Path) -> None:
    """As a version left a run that did not count it yet."""
    run, flops = RunFolder(folder), RunFolder(folder).flops()
    for account in (flops["components"], *flops["phases"].values()):
        del account["masked_active"]
    conventions = {name: count for name, count in flops["conventions"].items() if name != "mean_density"}
    for key, value in (flops | {"conventions": conventions}).items():
        edit_json(folder / "flops.json", key, value)
    rows = run.metrics()
    for row in rows:
        del row["flops"]["masked_active"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _train(
    arm: str, steps: int, final_loss: float, head_sparse: bool, random: np.random.Generator
) -> tuple[list[dict], dict]:
    total, phases, rows = dict.fromkeys(_step_flops(0, False, False, True), 0), {}, []
    for step in range(1, steps + 1):
        phase, sparsity = _state(arm, (step - 1) / steps)
        hybrid = phase == "ultra-sparsification"
        updates = arm.startswith(("rigl", "mst")) and step % UPDATE_EVERY == 0
        spent = _step_flops(sparsity, hybrid, updates, head_sparse)
        if arm.startswith(SMALLER) or "_4x" in arm:
            its_phase, its_sparsity = _state("mst", (step - 1) / steps)
            its_updates = step % UPDATE_EVERY == 0
            spent = _step_flops(its_sparsity, its_phase == "ultra-sparsification", its_updates, head_sparse)
        if arm == "dense_one_layer":
            spent = {name: round(0.6 * count) for name, count in spent.items()}
        ledger = phases.setdefault(phase, dict.fromkeys(total, 0))
        for name, count in spent.items():
            total[name] += count
            ledger[name] += count
        if step % LOG_EVERY == 0 or step == steps:
            loss = final_loss + 3 * (np.exp(-6 * step / steps) - np.exp(-6))
            drop = 0.15 * (1 + np.cos(np.pi * step / steps)) if arm.startswith(("set", "rigl", "mst")) else 0.0
            row = {
                "step": step,
                "tokens": step * TOKENS,
                "loss": loss + random.normal(0, 0.05),
                "lr": 1e-3,
                "grad_norm": 1.0,
                "sparsity_target": sparsity,
                "sparsity": sparsity,
                "drop_fraction": drop,
            }
            row |= {
                "attention_pattern": "sparse" if hybrid else "dense",
                "phase": phase,
                "flops": dict(total),
                "tokens_per_second": 9_000.0,
                "memory_bytes": 10**8,
                "seconds": step / 20,
            }
            rows.append(row | ({"validation_loss": loss} if step % EVALUATE_EVERY == 0 or step == steps else {}))
    return rows, phases


def _state(arm: str, progress: float) -> tuple[str, float]:
    if not arm.startswith("mst"):
        return "training", 0.0 if arm.startswith("dense") else 0.8
    phase = next(name for name, end in PHASES.items() if progress < end)
    ramps = {
        "warm-up": 0.9 * (1 - (1 - progress / 0.1) ** 3),
        "ultra-sparsification": 0.9,
        "restoration": 0.9 - 0.4 * (progress - 0.7) / 0.3,
    }
    return phase, ramps[phase]


def _step_flops(sparsity: float, hybrid: bool, dense_gradient: bool, head_sparse: bool) -> dict[str, int]:
    block, head = round(BLOCK["full"] * (1 - sparsity)), round(HEAD * (1 - sparsity * head_sparse))
    pairs = (
        {"full": 3 * ATTENTION["full"], "causal": 3 * ATTENTION["causal"]}
        if not hybrid
        else dict.fromkeys(("full", "causal"), 3 * ATTENTION["full"] // 8)
    )
    flops = {
        "block_forward": block,
        "block_input_gradient": block,
        "block_weight_gradient": block,
        "block_dense_gradient": (BLOCK["full"] - block) * dense_gradient,
    }
    flops |= {"attention_full": pairs["full"], "attention_causal": pairs["causal"]}
    flops |= {
        "head_forward": head,
        "head_input_gradient": head,
        "head_weight_gradient": head,
        "head_dense_gradient": (HEAD - head) * dense_gradient,
    }
    flops["masked_active"] = 3 * (block + head * head_sparse)
    return {name: count * TOKENS for name, count in flops.items()}


def _conventions(total: dict[str, int], head_masked: bool) -> dict[str, dict]:
    dense = {name: STEPS * count for name, count in _step_flops(0, False, False, head_masked).items()}
    counted = {}
    for convention, prefixes in CONVENTIONS.items():
        reference, flops = (
            sum(count for name, count in ledger.items() if name.startswith(prefixes)) for ledger in (dense, total)
        )
        counted[convention] = {"dense_flops": reference, "flops": flops, "reduction": reference / flops}
    return counted


def _lm_eval(task: str, metrics: dict[str, float]) -> dict:
    values = {f"{name},none": float(value) for name, value in metrics.items()}
    return {
        "results": {
            task: {"alias": task, "sample_len": 100, **values, **{f"{name}_stderr,none": "N/A" for name in metrics}}
        }
    }


def _write_topology(run: RunFolder, arm: str, steps: int, sparsity: float, random: np.random.Generator) -> None:
    masks = {name: random.random(shape) >= sparsity for name, shape in LAYERS.items()}
    run.write_masks(masks)
    updates = range(UPDATE_EVERY, steps + 1, UPDATE_EVERY) if arm != "static" else ()
    for step in updates:
        drop = 0.15 * (1 + np.cos(np.pi * step / steps))
        for name, mask in masks.items():
            moved, active = int(drop * mask.sum()), 1 - sparsity
            run.append(
                "topology.jsonl",
                [
                    {
                        "step": step,
                        "layer": name,
                        "size": mask.size,
                        "nnz": int(mask.sum()),
                        "dropped": moved,
                        "grown": moved,
                        "overlap_first": 0.3 + 0.7 * float(np.exp(-4 * step / steps)),
                        "ever_active": min(1.0, active + 0.6 * (1 - float(np.exp(-3 * step / steps)))),
                    }
                ],
            )


def facts(arm, *overrides, profile="small", seed=0, **environment):
    shards = {"shards": {"train": "0" * 64, "validation": "1" * 64}}
    return Facts(f"{arm}/seed-{seed}", load_config(profile, arm, seed, overrides).to_dict(), shards | environment)
