"""The commands of the program `llmlab`, one module each."""
