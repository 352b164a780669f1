"""Data: corpus -> tokenizer -> token shards -> batches, and the evaluation sets. Imports no torch."""

from replication.data.batches import Batches
from replication.data.heldout import write_evaluation_sets
from replication.data.shards import PreparedData, prepare
from replication.data.tokenizer import load_tokenizer, pad_vocab_size

__all__ = ["Batches", "PreparedData", "load_tokenizer", "pad_vocab_size", "prepare", "write_evaluation_sets"]
