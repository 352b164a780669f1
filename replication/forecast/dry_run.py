"""What a run needs, before it is started: parameters, tokens, FLOPs, memory, disk and time. Allocates no weight."""

from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from replication.config.run_config import RunConfig
from replication.flops.plan import plan
from replication.methods import method
from replication.model.gpt2 import build_model, select_masked_shapes
from replication.system.errors import UserError

FLOAT = 4  # bytes: weights, gradients and moments are float32
GIB = 2**30


def dry_run(config: RunConfig, devices: int = 4, tflops: float = 312.0, utilisation: float = 0.4) -> dict[str, Any]:
    """The run's needs, from its configuration and tensors without storage (PyTorch's meta device under fake tensors).

    Args:
        config: any run; shapes of any GPT-2.
        devices: data-parallel processes, one device each (PAPER `readme`: 4).
        tflops: peak rate of a device in 10¹² FLOP/s (312: an A100 in bfloat16, NVIDIA's data sheet).
        utilisation: share of the peak that training reaches (ours).

    Returns:
        `parameters`, `tokens`, `conventions` (as in `plan`), `memory_bytes` per device by use, `checkpoint_bytes`,
        `resume_bytes`, and `hours`: `masked` where masked products are executed densely, `counted` if every FLOP saved
        were time saved (both head_counted_full).

    Raises:
        UserError: a rate, utilisation or number of devices that is out of range, a batch that the devices cannot share.
    """
    for key, value, allowed in (
        ("--devices", devices, devices >= 1),
        ("--tflops", tflops, tflops > 0),
        ("--utilisation", utilisation, 0 < utilisation <= 1),
    ):
        if not allowed:
            raise UserError(
                f"{key} is {value}; allowed: {'above 0, at most 1' if key == '--utilisation' else 'above 0'}"
            )
    if config.train.batch_size % devices:
        raise UserError(f"train.batch_size is {config.train.batch_size}; allowed: a multiple of the {devices} devices")
    micro_batch = config.train.micro_batch_size or config.train.batch_size // devices
    total, trained, activations, logits = _trace(config, micro_batch)
    masked = (
        0 if config.method == "dense" else sum(n_in * n_out for n_in, n_out in select_masked_shapes(config).values())
    )
    num_masks = 3 if method(config.method).is_dynamic else 1  # dynamic: the first mask and the ever active too
    masks = masked * num_masks
    ledger = plan(config)
    count = ledger["conventions"]["head_counted_full"]
    rate = devices * tflops * 1e12 * utilisation * 3600
    memory = {
        "weights": FLOAT * total,
        "gradients": FLOAT * trained,
        "moments": 2 * FLOAT * trained,
        "masks": masks,
        "activations": activations,
        "gradient of the logits": logits,
    }
    return {
        "parameters": {
            "trained": trained,
            "stored (with the biases, fixed at zero)": total,
            "maskable": masked,
            "active at the end": trained - masked + round(masked * (1 - ledger["final_sparsity"])),
        },
        "tokens": ledger["tokens"],
        "steps": ledger["steps"],
        "conventions": ledger["conventions"],
        "devices": devices,
        "micro_batch_size": micro_batch,
        "memory_bytes": memory | {"sum": sum(memory.values())},
        "checkpoint_bytes": FLOAT * total,
        "resume_bytes": FLOAT * (total + 2 * trained) + masks,
        "hours": {
            "masked": count["dense_flops"] * config.train.steps / config.train.num_steps / rate,
            "counted": count["flops"] / rate,
        },
        "rate": {"tflops": tflops, "utilisation": utilisation},
    }


def render(needs: dict[str, Any], name: str) -> str:
    """For the terminal."""
    parameters = ", ".join(f"{count:,} {kind}" for kind, count in needs["parameters"].items())
    memory = ", ".join(f"{use} {size / GIB:.2f}" for use, size in needs["memory_bytes"].items() if use != "sum")
    hours, rate = needs["hours"], needs["rate"]
    lines = [
        name,
        f"parameters   {parameters}",
        f"tokens       {needs['tokens']:,} in {needs['steps']:,} steps",
        *(
            f"FLOPs        {count['flops']:.4g} of dense {count['dense_flops']:.4g}, "
            f"{count['reduction']:.2f}× ({convention})"
            for convention, count in needs["conventions"].items()
        ),
        f"memory       {needs['memory_bytes']['sum'] / GIB:.2f} GiB a device: {memory} "
        f"(micro-batch of {needs['micro_batch_size']} sequences)",
        f"disk         checkpoint {needs['checkpoint_bytes'] / GIB:.2f} GiB, "
        f"resume state {needs['resume_bytes'] / GIB:.2f} GiB",
        f"time         {hours['masked']:,.1f} h on {needs['devices']} device(s) of {rate['tflops']:g} TFLOP/s "
        f"at {rate['utilisation']:.0%}, masked products executed densely; "
        f"{hours['counted']:,.1f} h if every FLOP saved were time saved",
    ]
    return "\n".join(lines)


def _trace(config: RunConfig, micro_batch: int) -> tuple[int, int, int, int]:
    """Parameters, trained ones, bytes kept for one micro-batch's backward pass, and bytes of its logits' gradient."""
    kept: dict[int, torch.UntypedStorage] = {}
    with FakeTensorMode():
        model = build_model(config, 0)
        weights = {param.untyped_storage()._cdata for param in model.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage
            return tensor

        tokens = torch.zeros(micro_batch, config.model.n_positions + 1, dtype=torch.long)
        bf16 = config.train.precision != "fp32"
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
    total = sum(param.numel() for param in model.parameters())
    trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
    return total, trained, sum(storage.nbytes() for storage in kept.values()), logits.numel() * (FLOAT + 2 * bf16)
