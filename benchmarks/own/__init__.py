"""Everyday use measured: twelve labelled sets, few labelled rows of each, and what an engineer would use instead."""
