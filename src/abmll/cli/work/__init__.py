"""What each command does once its arguments are checked: `abmll NAME` is declared in `cli/verbs/NAME.py`.

These modules import models and kernels, which takes seconds. A command imports its own one below its checks, in a line
that ends in `# after the arguments`, so that neither `--help` nor a misspelt file waits for them.
"""
