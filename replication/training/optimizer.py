"""AdamW and its learning rate, as the paper trains."""

import math

import torch
from torch import nn

from replication.config.fields import TrainConfig
from replication.model.gpt2 import BLOCKS


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, with weight decay on the blocks' linear weights alone (PAPER `code`), or as `train.decayed` says."""
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    matrices = {name for name, param in trained.items() if param.dim() >= 2}
    decayed = matrices if config.decayed == "matrices" else {name for name in matrices if name.startswith(BLOCKS)}
    groups = [
        {"params": [param for name, param in trained.items() if name in decayed], "weight_decay": config.weight_decay},
        {"params": [param for name, param in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to `final_learning_rate` at the run's end (PAPER `code`).

    Of W warm-up steps, step t has t / W of the highest rate (`code`), or (t + 1) / (W + 1), which is never 0 (ours).
    """
    if step < config.warmup_steps:
        skipped = 0 if config.warmup_from == "zero" else 1
        return config.learning_rate * (step + skipped) / (config.warmup_steps + skipped)
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2
