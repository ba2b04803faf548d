"""Recovery: the kept weights of a pruned model learn the dense model's predictions."""
