"""A system is a base model with adapters and a method: it is built, adapted to a task, and answers."""
