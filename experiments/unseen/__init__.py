"""Does it generalise, is it calibrated, and why: the protocol is README.md, the settings protocol.yaml."""
