"""GPT-2 from transformers, and the hybrid sparse attention patterns."""
