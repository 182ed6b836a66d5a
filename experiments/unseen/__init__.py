"""Does it generalise, is it calibrated, and why: the protocol is README.md, the settings protocol.yaml.

Tasks come from folders here. So where the data of the built-in questions is not installed, as on a machine that only
measures, empty modules stand in for it: importing abmll asks for them, nothing else does.
"""

import importlib.util
import sys
import types

for _name in ("periodictable",):
    if _name not in sys.modules and importlib.util.find_spec(_name) is None:
        sys.modules[_name] = types.ModuleType(_name)
