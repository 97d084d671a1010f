"""The tune stage: rows to token ids with a loss mask, then LoRA through peft and transformers' Trainer."""
