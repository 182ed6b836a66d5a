"""From questions to tokens: prompts, chat templates, batches, examples in the prompt."""
