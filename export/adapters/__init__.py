"""LoRA adapters as files beside an exported base, and their proof."""
