"""A second device without a second device: tensors that say ``meta``, hold their values in main memory, and refuse to
meet a tensor of the CPU, as a graphics card's do.

(torch's own meta device has shapes alone; of the names that torch knows it is the one that needs no driver.) Inside
`far_device()` whatever is made on or moved to FAR is such a tensor and decoders run there, so a whole analysis can run
"there" and must give what it gives on the CPU. As on a real card a number (a tensor without axes) of the CPU may join
in, rows may be picked by indices of the CPU, and ``.numpy()`` is refused before ``.cpu()``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = "meta"
PICKS = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


class FarTensor(torch.Tensor):
    """Says that it is on FAR; ``here`` has the values."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "FarTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(FAR),
        )
        made.here = here
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def item(self) -> Any:
        """Its number, as a card gives it."""
        return self.here.item()

    def __int__(self) -> int:
        return int(self.here)

    def __float__(self) -> float:
        return float(self.here)

    def __bool__(self) -> bool:
        return bool(self.here)

    def __repr__(self, **_: Any) -> str:
        return f"FarTensor({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Far(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: tuple, kwargs: dict) -> Any:
    name = func._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    far = any(isinstance(x, FarTensor) for x in tensors)
    asked = kwargs.get("device")
    goes = far if asked is None else torch.device(asked).type == FAR
    moves = name in ("aten::_to_copy", "aten::copy_")
    if any(not isinstance(x, FarTensor) and x.is_meta for x in tensors):
        raise RuntimeError(f"{name}: a tensor was made on {FAR} past this stand-in (a list as an index, say)")
    near = [x for x in tensors if not isinstance(x, FarTensor) and x.ndim]
    if far and near and not moves and name not in PICKS:
        raise RuntimeError(f"{name}: expected all tensors on the same device, got two")
    args, kwargs = tree_map(_here, (args, kwargs))
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = func(*args, **kwargs)
    if not goes:
        return result
    known = {id(x.here): x for x in tensors if isinstance(x, FarTensor)}

    def away(x: Any) -> Any:
        if type(x) is not torch.Tensor:
            return x
        return known[id(x)] if id(x) in known else FarTensor(x)

    return tree_map(away, result)


def _here(value: Any) -> Any:
    return value.here if isinstance(value, FarTensor) else value


@contextmanager
def far_device() -> Iterator[None]:
    """torch as it would be with one graphics card, as far as plain arithmetic goes; decoders may be placed there."""
    where = patch("covector.run.decoder.placed", lambda device, dtype: torch.device(device))
    tensor, as_tensor = (
        patch.object(torch, name, _then_moved(getattr(torch, name))) for name in ("tensor", "as_tensor")
    )
    with where, tensor, as_tensor, _Far():
        yield


def _then_moved(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """torch fills these two past every dispatcher: made on the CPU, then moved, they come to the same."""

    def there(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        found = make(data, **options)
        return found if device is None else found.to(device)

    return there
