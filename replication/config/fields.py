"""The fields of a run's configuration: frozen dataclasses, one per concern, that check what they hold."""

import math
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from replication.config.limits import MOST_LAYERS, MOST_STEPS, check

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
PHASES = "phases"  # of eval.at: the end of each


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Text, its splits and its tokenizer.

    Attributes:
        source: `stdlib` (Python's own standard library), `files` (local) or `hub` (a Hugging Face data set).
        files: .txt, .txt.gz, .jsonl or .parquet, for `files`.
        validation_files: held-out files, halved into validation and test; empty: shares of `files` by hash.
        hub_name, hub_config, hub_split: the data set, its configuration and the split that is read, for `hub`.
        text_column: where a .jsonl, a .parquet or a data set has its text.
        validation_fraction, test_fraction: shares of the documents that are held out.
        tokenizer: `bpe` (byte-level, trained on the training split) or `gpt2`.
        vocab_size: entries of the trained tokenizer, `<|endoftext|>` included.
        gpt2_folder: where vocab.json and merges.txt are; null: the hub.
    """

    source: Literal["stdlib", "files", "hub"] = "stdlib"
    files: tuple[str, ...] = ()
    validation_files: tuple[str, ...] = ()
    hub_name: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    text_column: str = "text"
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    tokenizer: Literal["bpe", "gpt2"] = "bpe"
    vocab_size: int = 1024
    gpt2_folder: str | None = None

    def __post_init__(self) -> None:
        check(
            self.source != "files" or bool(self.files),
            "data.files",
            list(self.files),
            "at least one file where data.source is files",
        )
        check(
            self.source != "hub" or bool(self.hub_name),
            "data.hub_name",
            self.hub_name,
            "a data set's name where data.source is hub",
        )
        for key in ("files", "validation_files"):
            check(
                self.source == "files" or not getattr(self, key),
                f"data.{key}",
                list(getattr(self, key)),
                f"with data.source=files; data.source is {self.source}",
            )
        held_out = self.validation_fraction + self.test_fraction
        check(
            self.validation_fraction > 0 and self.test_fraction > 0 and held_out < 1,
            "data.validation_fraction + data.test_fraction",
            held_out,
            "two positive shares, below 1 together",
        )
        check(
            257 <= self.vocab_size <= 65536,
            "data.vocab_size",
            self.vocab_size,
            "257 (all bytes and <|endoftext|>) to 65536 (uint16 shards)",
        )


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """GPT-2's shape, under transformers' names.

    Attributes:
        n_layer: blocks.
        n_head: attention heads of a block, a divisor of the width.
        n_embd: width.
        n_positions: context length in tokens.
    """

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 64
    n_positions: int = 128

    def __post_init__(self) -> None:
        for key in ("n_layer", "n_head", "n_embd", "n_positions"):
            check(getattr(self, key) >= 1, f"model.{key}", getattr(self, key), "1 or more")
        check(self.n_layer <= MOST_LAYERS, "model.n_layer", self.n_layer, f"at most {MOST_LAYERS}")
        check(self.n_embd % self.n_head == 0, "model.n_head", self.n_head, f"a divisor of model.n_embd = {self.n_embd}")


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """The optimisation of one run.

    Attributes:
        num_steps: steps of the profile's full-length run, against which every FLOP reduction is counted.
        steps_fraction: share of `num_steps` that this arm trains; its learning-rate schedule is shortened with it.
        batch_size: sequences per step, over all processes and micro-steps.
        micro_batch_size: sequences per forward pass and process; null: all of a process's share.
        learning_rate: the highest, after the warm-up.
        min_learning_rate: where the cosine ends; null: at a tenth of `learning_rate` (as in PAPER `code`).
        warmup_steps: linear learning-rate warm-up, before the cosine.
        warmup_from: at which learning rate it begins: `zero`, so that the first step moves no weight (PAPER `code`), or
            `above_zero`, the first of its equal rises (ours).
        weight_decay: of what `decayed` says.
        decayed: the `blocks`' linear weights (PAPER `code`), or all `matrices`, token and position embeddings too.
        beta1, beta2: of AdamW.
        grad_clip: largest gradient norm (of what: sparsity.clip_norm).
        precision: `auto` is bfloat16 autocast where the processor or GPU multiplies in bfloat16, else float32.
        kernels: masked matrices are multiplied at their active weights alone (`sparse`, on a CPU), densely
            (`masked`), or as was measured to be faster (`auto`).
        compile: run the model through torch.compile; pays off on a GPU or in long runs, needs a C++ compiler on a CPU.
        eval_freq, log_freq, checkpoint_freq: in steps.
        eval_batches: validation batches while training, of `micro_batch_size` sequences; the final loss is over the
            whole split.
        validation_part: the `validation` split; or `tuning`: the end of the training split, which is then not trained
            on (ours).
    """

    num_steps: int = 1000
    steps_fraction: float = 1.0
    batch_size: int = 16
    micro_batch_size: int | None = None
    learning_rate: float = 3e-3
    min_learning_rate: float | None = None
    warmup_steps: int = 20
    warmup_from: Literal["above_zero", "zero"] = "above_zero"
    weight_decay: float = 0.1
    decayed: Literal["blocks", "matrices"] = "blocks"
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    kernels: Literal["auto", "sparse", "masked"] = "auto"
    compile: bool = False
    eval_freq: int = 100
    eval_batches: int = 20
    validation_part: Literal["validation", "tuning"] = "validation"
    log_freq: int = 10
    checkpoint_freq: int = 200

    def __post_init__(self) -> None:
        for key in ("num_steps", "batch_size", "eval_freq", "eval_batches", "log_freq", "checkpoint_freq"):
            check(getattr(self, key) >= 1, f"train.{key}", getattr(self, key), "1 or more")
        check(self.num_steps <= MOST_STEPS, "train.num_steps", self.num_steps, f"at most {MOST_STEPS}")
        check(0 < self.steps_fraction <= 1, "train.steps_fraction", self.steps_fraction, "above 0, at most 1")
        micro = self.micro_batch_size
        check(
            micro is None or (micro >= 1 and self.batch_size % micro == 0),
            "train.micro_batch_size",
            micro,
            f"a divisor of train.batch_size = {self.batch_size}",
        )
        check(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "above 0")
        least = self.min_learning_rate
        check(
            least is None or 0 <= least <= self.learning_rate,
            "train.min_learning_rate",
            least,
            f"null or 0 to train.learning_rate = {self.learning_rate}",
        )
        check(
            0 <= self.warmup_steps <= self.steps,
            "train.warmup_steps",
            self.warmup_steps,
            f"0 to the {self.steps} steps of this run",
        )
        check(self.grad_clip > 0, "train.grad_clip", self.grad_clip, "above 0")
        check(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "0 or more")
        for key in ("beta1", "beta2"):
            check(0 <= getattr(self, key) < 1, f"train.{key}", getattr(self, key), "0 or more, below 1")

    @property
    def final_learning_rate(self) -> float:
        """Where the cosine ends."""
        return self.learning_rate / 10 if self.min_learning_rate is None else self.min_learning_rate

    @property
    def steps(self) -> int:
        """Steps that this run trains."""
        return max(1, round(self.num_steps * self.steps_fraction))


@dataclass(frozen=True, config=STRICT)
class SparsityConfig:
    """What all sparse methods share; steps are counted from 0.

    Attributes:
        sparsity: fraction of zeros among the masked weights, for constant-sparsity methods.
        distribution: over layers: `er` (Erdős–Rényi) or `uniform`.
        initial_mask: `random` or the largest weights by `magnitude`.
        update_freq: steps between topology updates.
        update_start_step, update_end_step: updates happen from the first on and before the second; null: the end.
        drop_fraction: share of a layer's active weights that the first update drops; a cosine takes it to 0.
        update_replaces_step: an update takes the place of that step's weight update (RigL's convention).
        mask_lm_head: mask the LM head too. It is tied to the token embedding, which so becomes as sparse.
        reset_moments: an update zeroes the Adam moments of masked weights; false: they decay, and a regrown weight
            starts with what is left.
        growth_gradient: what growth ranks: the magnitude of the `mean` gradient over micro-steps and processes; the
            mean over processes of each one's magnitude (`process_magnitudes`: the authors' way, which depends on
            their number); or the mean of every micro-step's (`magnitudes`).
        growth_score: what of that gradient is ranked: its magnitude (`gradient`), or that relative to its row and
            column (`balanced`: ours).
        split_qkv: drop and grow in Q, K and V apart, an equal share each, instead of in the fused matrix (ours).
        block_shape: outputs and inputs of the blocks of weights that are masked together, by their mean score (ours;
            [1, 1] is the paper).
        clip_norm: of the gradient that is clipped: of `active` weights only, or of all, before masking (`dense`).
        metrics: what `topology.jsonl` says of each layer at an update: names from `replication/sparsity/metrics.py`, or
            a plug-in's. `dead` raises the alarm of dead units.
    """

    sparsity: float = 0.8
    distribution: Literal["er", "uniform"] = "er"
    initial_mask: Literal["random", "magnitude"] = "random"
    update_freq: int = 100
    update_start_step: int = 0
    update_end_step: int | None = None
    drop_fraction: float = 0.3
    update_replaces_step: bool = True
    mask_lm_head: bool = True
    reset_moments: bool = True
    growth_gradient: Literal["mean", "process_magnitudes", "magnitudes"] = "mean"
    growth_score: Literal["gradient", "balanced"] = "gradient"
    split_qkv: bool = False
    clip_norm: Literal["active", "dense"] = "active"
    block_shape: tuple[int, int] = (1, 1)
    metrics: tuple[str, ...] = ("sparsity", "flow", "overlap_previous", "regrown", "degrees", "dead")

    def __post_init__(self) -> None:
        _check_sparsity("sparsity.sparsity", self.sparsity)
        check(self.update_freq >= 1, "sparsity.update_freq", self.update_freq, "1 or more")
        check(self.update_start_step >= 0, "sparsity.update_start_step", self.update_start_step, "0 or more")
        end = self.update_end_step
        check(
            end is None or end >= self.update_start_step,
            "sparsity.update_end_step",
            end,
            f"null or at least sparsity.update_start_step = {self.update_start_step}",
        )
        check(0 <= self.drop_fraction <= 1, "sparsity.drop_fraction", self.drop_fraction, "0 to 1")
        check(
            set(self.block_shape) <= {1, 2, 4, 8, 16, 32},
            "sparsity.block_shape",
            list(self.block_shape),
            "[outputs, inputs], each 1, 2, 4, 8, 16 or 32",
        )


@dataclass(frozen=True, config=STRICT)
class MSTConfig:
    """Mixed Sparsity Training; phase bounds are fractions of training.

    Attributes:
        phases: `fixed`; or `auto` (ours): the model trains dense until its loss flattens, then warm-up's ramp begins,
            as long as from `warmup_start` to `warmup_end`; restoration begins when what is left of the fixed phases'
            FLOPs is what it costs.
        slope: of `auto`: the ramp begins where the smoothed training loss falls by less, in nats per hundredth of
            training.
        warmup_start: dense until here, from where on the topology is updated.
        warmup_end: the cubic ramp from dense to `ultra_sparsity` ends here.
        restoration_start, restoration_end: the linear ramp from `ultra_sparsity` down to `final_sparsity`.
        ultra_sparsity: fraction of zeros in the middle phase.
        final_sparsity: fraction of zeros that restoration ends at.
        sparsity_steps: (step, sparsity) pairs instead of the ramps: the authors' step function. The first is at step 0.
        drop_fractions: start value of the drop fraction's cosine in warm-up, ultra-sparsification and restoration;
            null: one cosine over all steps from `sparsity.drop_fraction`.
        growth: `mixed` (Mixed-Growing), or its two ends.
        random_fraction: share of the new connections that Mixed-Growing grows at random.
        sparsity_variation: false: constant sparsity at equal FLOPs (ablation).
        hybrid_attention: false: dense attention throughout (ablation).
    """

    phases: Literal["fixed", "auto"] = "fixed"
    slope: float = 0.1
    warmup_start: float = 0.0
    warmup_end: float = 0.1
    restoration_start: float = 0.7
    restoration_end: float = 1.0
    ultra_sparsity: float = 0.9
    final_sparsity: float = 0.5
    sparsity_steps: tuple[tuple[int, float], ...] | None = None
    drop_fractions: tuple[float, float, float] | None = None
    growth: Literal["mixed", "gradient", "random"] = "mixed"
    random_fraction: float = 0.25
    sparsity_variation: bool = True
    hybrid_attention: bool = True

    def __post_init__(self) -> None:
        _check_sparsity("mst.ultra_sparsity", self.ultra_sparsity)
        _check_sparsity("mst.final_sparsity", self.final_sparsity)
        check(
            self.final_sparsity <= self.ultra_sparsity,
            "mst.final_sparsity",
            self.final_sparsity,
            f"at most mst.ultra_sparsity = {self.ultra_sparsity}: restoration gives connections back",
        )
        bounds = (0, self.warmup_start, self.warmup_end, self.restoration_start, self.restoration_end, 1)
        check(
            list(bounds) == sorted(bounds),
            "mst.warmup_start, mst.warmup_end, mst.restoration_start, mst.restoration_end",
            bounds[1:5],
            "rising fractions of training, 0 to 1, so that phases neither overlap nor exceed it",
        )
        check(0 <= self.random_fraction <= 1, "mst.random_fraction", self.random_fraction, "0 to 1")
        for value in self.drop_fractions or ():
            check(0 <= value <= 1, "mst.drop_fractions", value, "three values, 0 to 1")
        check(self.slope >= 0 and math.isfinite(self.slope), "mst.slope", self.slope, "0 or more")
        for key, plain in (("sparsity_steps", None), ("drop_fractions", None), ("sparsity_variation", True)):
            is_plain = self.phases == "fixed" or getattr(self, key) == plain
            check(is_plain, f"mst.{key}", getattr(self, key), f"{plain} where mst.phases is auto".lower())
        steps = [step for step, _ in self.sparsity_steps or ()]
        is_rising = self.sparsity_steps is None or (steps[:1] == [0] and steps == sorted(set(steps)))
        check(is_rising, "mst.sparsity_steps", steps, "rising steps, the first of them 0")
        for _, sparsity in self.sparsity_steps or ():
            _check_sparsity("mst.sparsity_steps", sparsity)


@dataclass(frozen=True, config=STRICT)
class AttentionConfig:
    """Hybrid sparse attention, for methods that switch it on.

    Attributes:
        pattern: `local`, `strided`, `sparse` (both together) or `fixed`.
        window, stride: in tokens; null: an eighth of the context, as 128 of 1024 (code).
        start_step, end_step: the pattern holds from the first on and before the second; null: the method's own choice
            (MST: ultra-sparsification).
    """

    pattern: Literal["dense", "local", "strided", "sparse", "fixed"] = "sparse"
    window: int | None = None
    stride: int | None = None
    start_step: int | None = None
    end_step: int | None = None

    def __post_init__(self) -> None:
        for key in ("window", "stride"):
            value = getattr(self, key)
            check(value is None or value >= 1, f"attention.{key}", value, "null or 1 or more")
        start, end = self.start_step, self.end_step
        check(start is None or start >= 0, "attention.start_step", start, "null or 0 or more")
        check(
            end is None or end >= (start or 0),
            "attention.end_step",
            end,
            f"null or at least attention.start_step = {start}",
        )

    def spans(self, n_positions: int) -> tuple[int, int]:
        """Window and stride in tokens, for a context length."""
        default = max(1, n_positions // 8)
        return self.window or default, self.stride or default


@dataclass(frozen=True, config=STRICT)
class EvalConfig:
    """What scores a finished checkpoint, and the model on its way there.

    Attributes:
        tasks: of lm-eval, ours or its own.
        at: when the model is kept and judged before the end (ours): after fractions of training, and at the end of
            the method's `phases`, as in [phases, 0.25].
        keep_weights: of what was kept so, once `replicate` has scored it.
    """

    tasks: tuple[str, ...] = ("embedded_lastword", "embedded_code", "embedded_prose", "embedded_dependencies")
    at: tuple[float | str, ...] = ()
    keep_weights: bool = False

    def __post_init__(self) -> None:
        for moment in self.at:
            is_one = moment == PHASES if isinstance(moment, str) else 0 < moment < 1
            check(
                is_one, "eval.at", list(self.at), f"a list of {PHASES} and of fractions of training, above 0, below 1"
            )


def _check_sparsity(key: str, value: float) -> None:
    check(0 <= value < 1 and math.isfinite(value), key, value, "0 <= sparsity < 1")
