"""Arrays with what they are, as bytes for another process, a checkpoint or the cache; no pickle."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def pack_arrays(about: Any, arrays: Mapping[str, np.ndarray]) -> bytes:
    """JSON values and arrays by name as a ``.npz``; no pickle.

    Args:
        about: lies in it as the array ``about``, UTF-8.
        arrays: none of them is called so.
    """
    buffer = io.BytesIO()
    data = np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8)
    np.savez(buffer, about=data, **arrays)  # type: ignore[arg-type]  # savez's own flag
    return buffer.getvalue()


def unpack_arrays(data: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    """What `pack_arrays` gave.

    Raises:
        Exception: it is nothing like it; `zipfile`, NumPy and `json` have a dozen kinds.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(arrays.pop("about").tobytes()), arrays
