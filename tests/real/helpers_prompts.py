"""What the real model is asked."""

from sqft_plugins.demo.task import WordProblems

PROMPTS = [item.prompt for item in WordProblems(16).items()] + [
    "The capital of France is",
    "Python is a language that",
    "Question: What do bees make?\nAnswer:",
    "def add(a, b):\n    return",
]
