"""The multiple-choice sets of CrossFit and UnifiedQA on the Hugging Face hub: where each is, and how its rows read."""
