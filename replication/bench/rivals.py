"""What users would train a dense GPT-2 with otherwise: a plain loop in nanoGPT's style, and transformers' Trainer."""

import contextlib
import itertools
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from replication.bench.measure import Pause
from replication.config.run_config import RunConfig
from replication.data import Batches, prepare
from replication.model.gpt2 import vocab_size


class PlainGPT2(nn.Module):
    """A GPT-2 as nanoGPT writes it: nn.Linear without biases, SDPA, GELU, a tied head; returns the loss."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        shape, width = config.model, config.model.n_embd
        self.num_heads = shape.n_head
        self.tokens, self.positions = nn.Embedding(vocab_size(config), width), nn.Embedding(shape.n_positions, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm_1": nn.LayerNorm(width, bias=False),
                    "attention": nn.Linear(width, 3 * width, bias=False),
                    "projection": nn.Linear(width, width, bias=False),
                    "norm_2": nn.LayerNorm(width, bias=False),
                    "up": nn.Linear(width, 4 * width, bias=False),
                    "down": nn.Linear(4 * width, width, bias=False),
                }
            )
            for _ in range(shape.n_layer)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        for param in self.parameters():
            if param.dim() == 2:
                nn.init.normal_(param, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens[:, :-1]) + self.positions.weight[: tokens.shape[1] - 1]
        for block in self.blocks:
            heads = (
                part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
                for part in block["attention"](block["norm_1"](x)).chunk(3, 2)
            )
            y = F.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + block["projection"](y.transpose(1, 2).flatten(2))
            x = x + block["down"](F.gelu(block["up"](block["norm_2"](x))))
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train_plain(pause: Pause, config: RunConfig, data_dir: Path) -> None:
    """The plain loop, without end; through torch.compile if configured."""
    batches = _batches(config, data_dir)
    model = PlainGPT2(config)
    forward = torch.compile(model) if config.train.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.train.learning_rate, fused=True)
    for step in itertools.count():
        pause()
        with torch.autocast("cpu", torch.bfloat16) if config.train.precision == "bf16" else contextlib.nullcontext():
            loss = forward(torch.from_numpy(batches.train_batch(step)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def train_transformers(pause: Pause, config: RunConfig, data_dir: Path) -> None:
    """transformers' GPT-2 under its Trainer, without dropout and otherwise as they come, for a million steps."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    batches, shape = _batches(config, data_dir), config.model
    sizes = {
        "vocab_size": vocab_size(config),
        "n_positions": shape.n_positions,
        "n_embd": shape.n_embd,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
    }

    class Sequences(torch.utils.data.IterableDataset):
        def __iter__(self):
            for step in itertools.count():
                for row in torch.from_numpy(batches.train_batch(step)):
                    yield {"input_ids": row[:-1], "labels": row[:-1]}  # the model shifts them itself

    class Pauses(TrainerCallback):
        def on_step_begin(self, *_, **__) -> None:
            pause()

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out,
            use_cpu=True,
            bf16=config.train.precision == "bf16",
            max_steps=10**6,
            per_device_train_batch_size=config.train.batch_size,
            learning_rate=config.train.learning_rate,
            max_grad_norm=config.train.grad_clip,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        model = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
        Trainer(model, arguments, train_dataset=Sequences(), callbacks=[Pauses()]).train()


def _batches(config: RunConfig, data_dir: Path) -> Batches:
    return Batches(
        prepare(config.data, data_dir).tokens("train"),
        "train",
        config.seed,
        config.train.batch_size,
        config.model.n_positions,
    )
