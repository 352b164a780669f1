"""What leaves: a checkpoint's card, and its way to the Hugging Face hub."""
