"""What a target may say: typed, with every fault found at once."""
