"""The tokenizer, a byte-level BPE: trained here, or GPT-2's. transformers loads its folder with no code of ours."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from replication.config.fields import DataConfig
from replication.system.errors import UserError
from replication.system.signals import tell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
LONGEST_WORD = 1024  # bytes; training takes the square of the longest word (ours)
GPT2_VOCAB_SIZE = 50257  # readme, code


def pad_vocab_size(size: int) -> int:
    """Rows of the model's embedding: the vocabulary, padded to a multiple of 64 (readme, code: 50257 to 50304)."""
    return -(-size // 64) * 64


def entries_asked_for(config: DataConfig) -> int:
    """Of the tokenizer; where the text has too little to merge, or GPT-2's files are another's, there are fewer."""
    return GPT2_VOCAB_SIZE if config.tokenizer == "gpt2" else config.vocab_size


def make_tokenizer(config: DataConfig, train_texts: Iterable[str]) -> Tokenizer:
    """The configuration's tokenizer; only `bpe` reads the texts.

    Raises:
        UserError: GPT-2's files are missing, broken or unreachable.
    """
    return _train(train_texts, config.vocab_size) if config.tokenizer == "bpe" else _gpt2(config.gpt2_folder)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a Hugging Face tokenizer folder, with `<|endoftext|>` in every special role, as GPT-2 has it."""
    from transformers import PreTrainedTokenizerFast

    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles).save_pretrained(
        folder
    )


def copy_tokenizer(folder: Path, to: Path, context: int) -> None:
    """A model's own copy of a folder that `save_tokenizer` wrote: transformers 4 reads it too, which does not know the
    class that 5 writes, and truncation is to the model's context, in tokens."""
    for file in folder.iterdir():
        shutil.copy(file, to)
    file = to / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer in a folder that `save_tokenizer` wrote: a prepared corpus' or a checkpoint."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def _train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = _byte_level(models.BPE())
    alphabet, words = pre_tokenizers.ByteLevel.alphabet(), tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(LONGEST_WORD)])
    tokenizer.train_from_iterator(
        _naming_long_words(texts),
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.pre_tokenizer = words
    return tokenizer


def _naming_long_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts; at the end a line on the longest word, where it was cut."""
    longest = ""
    for text in texts:
        longest = max([longest, *re.findall(rf"\S{{{LONGEST_WORD + 1},}}", text)], key=len)
        yield text
    if longest:
        tell(
            f"data: a word of {len(longest)} characters ({longest[:20]!r}…): the tokenizer is trained on its pieces of "
            f"{LONGEST_WORD}, and encodes it whole"
        )


def _gpt2(folder: str | None) -> Tokenizer:
    vocab, merges = (_gpt2_file(folder, name) for name in ("vocab.json", "merges.txt"))
    try:
        bpe = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(
            f"data.gpt2_folder={folder}: {error}; allowed: a folder with GPT-2's vocab.json and merges.txt"
        ) from None
    problem = _disagreement(json.loads(vocab.read_text(encoding="utf-8")), merges.read_text(encoding="utf-8"))
    if problem:
        raise UserError(
            f"data.gpt2_folder={folder}: vocab.json and merges.txt do not belong together: {problem}; "
            "allowed: GPT-2's own pair"
        )
    tokenizer = _byte_level(bpe)
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _disagreement(vocab: dict[str, int], merges: str) -> str | None:
    """What is wrong, if anything.

    Each entry is to be a byte, a merge or `<|endoftext|>`, each of those an entry, and no more than GPT-2's.
    """
    formed = {"".join(line.split(" ")) for line in merges.splitlines() if line and not line.startswith("#version")}
    wanted = formed | set(pre_tokenizers.ByteLevel.alphabet())
    entries = vocab.keys() - {END_OF_TEXT}
    if entries - wanted:
        return f"no merge forms {len(entries - wanted)} entries such as {min(entries - wanted)!r}"
    if wanted - entries:
        return f"{len(wanted - entries)} bytes or merges such as {min(wanted - entries)!r} are no entries"
    if sorted(vocab.values()) != list(range(len(vocab))):
        return f"the ids of the {len(vocab)} entries are not 0 to {len(vocab) - 1}"
    return f"{len(vocab)} entries, of at most {GPT2_VOCAB_SIZE}" if len(vocab) > GPT2_VOCAB_SIZE else None


def _gpt2_file(folder: str | None, name: str) -> Path:
    allowed = "allowed: a folder with GPT-2's vocab.json and merges.txt"
    if folder is not None:
        file = Path(folder) / name
        if not file.is_file():
            raise UserError(f"data.gpt2_folder={folder} has no {name}; {allowed}")
        return file
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download("openai-community/gpt2", name))
    except Exception as error:  # as in corpus.py: the hub's failures have no common class
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"data.gpt2_folder is null and the hub does not give {name}: {reason}; {allowed}") from None


def _byte_level(bpe: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer
