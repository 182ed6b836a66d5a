"""Values as tables hold them (of numpy, pandas, Arrow, JSON) -> values of Python."""

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow

_NOTHING = ("NAType", "NaTType")  # of pandas, which need not be installed


def plain(value: Any) -> Any:
    """A value of any table as one of Python: nothing (NaN, NaT, NA, masked) is None, arrays are lists, text is `str`.

    Dates of numpy stay, as `datetime` cannot hold all of them; what is not known stays as it is.

    >>> plain(np.int64(3)), plain(np.float32(0.1)), plain(float("nan")), plain(np.array(["a"]))
    (3, 0.1, None, ['a'])
    """
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, str):  # of numpy; of an enumeration, whose text is its value
        return str.__str__(value)
    if isinstance(value, pyarrow.Scalar):
        return plain(value.as_py())
    if is_nothing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer) and not isinstance(value, np.timedelta64):
        return int(value)
    if isinstance(value, np.floating):
        return float(str(value))  # of 32 bits 0.1 is 0.1, not 0.10000000149
    if isinstance(value, float | np.bytes_):
        return float(value) if isinstance(value, float) else bytes(value)
    return _from_array(value)


def is_nothing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN of any kind, NaT, NA, what is masked."""
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return value is None or value is np.ma.masked or type(value).__name__ in _NOTHING


def _from_array(value: Any) -> Any:
    """Arrays, Series and tensors as lists, those of no dimension as their value; anything else as it is."""
    dimensions = getattr(value, "ndim", None)
    if dimensions is None or isinstance(value, np.generic) or not hasattr(value, "tolist"):
        return value.to_list() if hasattr(value, "to_list") and not isinstance(value, type) else value
    return plain(value.item()) if dimensions == 0 else [plain(each) for each in value.tolist()]
