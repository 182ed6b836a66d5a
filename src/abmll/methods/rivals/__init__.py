"""The rivals: methods of other papers on the same loop, each with its source, see docs/rivals.md."""
