"""Preparing a large text: its speed against that of `tokenizers` alone, and the memory that it and batches take."""

import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from tokenizers import Tokenizer

from replication.analysis.tables import to_markdown
from replication.bench.ratios import compare, times
from replication.config.fields import DataConfig
from replication.data import Batches, prepare
from replication.data.building import write_shards
from replication.data.corpus import read_corpus
from replication.data.stdlib import stdlib_documents
from replication.data.tokenizer import END_OF_TEXT
from replication.system.machine import peak_resident

MEGABYTES, ROUNDS = 100, 3
BATCHES, WARMUP = 10**5, 10
_WORD = re.compile(r"[a-z]{4,}")


def measure_corpus(megabytes: int = MEGABYTES, rounds: int = ROUNDS, num_batches: int = BATCHES) -> Iterator[Any]:
    """A row each for preparing the text, for `tokenizers` on texts that are in memory, and for drawing batches."""
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "text.txt"
        _write(file, megabytes * 10**6)
        config = DataConfig(source="files", files=(str(file),), vocab_size=8192)
        seconds: dict[str, list[float]] = {"prepare": [], "tokenizers": []}
        peaks: dict[str, int] = {}
        prepared = _alone(_prepare, config, work)
        for _ in range(rounds):
            for name, work_of in (("prepare", _ours), ("tokenizers", _theirs)):
                spent, peaks[name] = _alone(work_of, config, prepared)
                seconds[name].append(spent)
        for name, spent in seconds.items():
            yield {"contender": name, "megabytes": megabytes, "seconds": spent, "peak_bytes": peaks[name]}
        spent, growth = _alone(_draw, config, work, num_batches)
        yield {"contender": "batches", "number": num_batches, "seconds": [spent], "growth_bytes": growth}


def _write(file: Path, size: int) -> None:
    """The standard library over and over, every twentieth word another one each time."""
    dice, texts = random.Random(0), [text for _, text in stdlib_documents()]
    words = sorted(set(_WORD.findall(" ".join(texts[:200]))))
    with file.open("w", encoding="utf-8") as out:
        for text in cycle(texts):
            if out.tell() >= size:
                return
            out.write(_WORD.sub(lambda word: dice.choice(words) if dice.random() < 0.05 else word[0], text))
            out.write(f"\n{END_OF_TEXT}\n")


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own, whose memory is that of the work."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def _prepare(config: DataConfig, data_dir: str) -> Path:
    return prepare(config, data_dir).folder


def _tokenizer(prepared: Path) -> Tokenizer:
    return Tokenizer.from_file(str(prepared / "tokenizer" / "tokenizer.json"))


def _ours(config: DataConfig, prepared: Path) -> tuple[float, int]:
    with tempfile.TemporaryDirectory(dir=prepared.parent) as folder:
        began = time.perf_counter()
        write_shards(config, _tokenizer(prepared), Path(folder), {"documents": 0, "segments": []})
        return time.perf_counter() - began, peak_resident()


def _theirs(config: DataConfig, prepared: Path) -> tuple[float, int]:
    tokenizer, texts = _tokenizer(prepared), [document.text for document in read_corpus(config)]
    began = time.perf_counter()
    for first in range(0, len(texts), 256):
        tokenizer.encode_batch_fast(texts[first : first + 256], add_special_tokens=False)
    return time.perf_counter() - began, peak_resident()


def _draw(config: DataConfig, data_dir: str, num_batches: int) -> tuple[float, int]:
    """Seconds of so many batches, and by how much the last of them found the process larger than the tenth."""
    batches, process = Batches(prepare(config, data_dir).tokens("train"), "train", 0, 12, 1024), psutil.Process()
    began = time.perf_counter()
    for step in range(num_batches):
        batches.train_batch(step)
        if step == WARMUP:
            before = process.memory_info().rss
    return time.perf_counter() - began, process.memory_info().rss - before


def render_corpus(rows: list[dict[str, Any]], folder: Path) -> str:
    """A line for each."""
    ours, theirs, batches = rows
    table = [
        {
            "what": row["contender"],
            "MB/s": f"{row['megabytes'] / pd.Series(row['seconds']).median():.2f}",
            "peak MiB": f"{row['peak_bytes'] / 2**20:,.0f}",
        }
        for row in (ours, theirs)
    ]
    ratio = compare([(theirs["seconds"], ours["seconds"])])
    return "\n\n".join(
        [
            "## (i) Preparing a large text",
            f"{ours['megabytes']} MB, read, split, tokenized and written: {times(ratio)} the speed of `tokenizers` "
            f"alone. {batches['number']:,} batches of 12 × 1024 took {batches['seconds'][0]:.0f} s and "
            f"{batches['growth_bytes'] / 2**20:.1f} MiB more memory.",
            to_markdown(pd.DataFrame(table)),
        ]
    )
