"""The pickle in a file of torch.save, taken apart as data: its opcodes are read, and nothing that it names is called.

`torch.load(weights_only=True)` calls torch's own functions with whatever the file gives them, and some of those take
memory, or look at the tensors' bytes, before anybody has checked a number. What is left here is a description.
No tensors.
"""

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Damaged(Exception):
    """Something that does not belong into such a file; translated by whoever knows the file's name."""


@dataclass(frozen=True)
class StorageRef:
    """The bytes under a key of the archive: `n_elements` numbers of a kind such as `FloatStorage`."""

    kind: str
    key: str
    n_elements: int


@dataclass(frozen=True)
class TensorRef:
    """A tensor within a storage; offset and strides are in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Foreign:
    """An object that no tensor consists of: the state of an optimizer may hold some. Nothing is made of it."""

    name: str  # of the global that it would come from

    def __str__(self) -> str:
        return ascii(self.name)[:100]


@dataclass(frozen=True)
class _Function:
    """A global that stands for one of `_FUNCTIONS`."""

    name: str


_MARK = object()
_NEW: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


def load_pickle(data: bytes) -> Any:
    """The value of a pickle: dictionaries, lists, tuples, strings, numbers, `TensorRef`s and `Foreign` objects.

    Raises `Damaged` for anything else.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes in the strings of the oldest protocol
            for opcode, argument, _ in pickletools.genops(data):
                machine.run(opcode.name, argument)
        return machine.result()
    except (ValueError, LookupError, TypeError, OverflowError) as exc:  # of `genops`, or a stack that is empty
        raise Damaged(f"its pickle is damaged ({type(exc).__name__})") from exc


def _global(name: str) -> Any:
    """What stands for a global: the few that tensors need are known."""
    module, _, attribute = name.partition(" ")
    if module == "torch" and attribute.endswith("Storage"):
        return attribute
    return _Function(name) if name in _FUNCTIONS else Foreign(name)


def _tensor(storage: object, offset: object, shape: object, stride: object, *rest: object) -> TensorRef:
    """The arguments of `torch._utils._rebuild_tensor_v2`: then requires_grad, hooks, and flags such as conjugation."""
    if not isinstance(storage, StorageRef):
        raise Damaged("a tensor has no storage")
    if any(rest[2:]):
        raise Damaged("a tensor is conjugated or negated")
    (first,) = _integers((offset,))
    return TensorRef(storage, first, _integers(shape), _integers(stride))


def _integers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or any(type(value) is not int for value in values):
        raise Damaged("a tensor is described by something else than whole numbers")
    return values


def _parameter(tensor: object, *_: object) -> object:
    """`torch._utils._rebuild_parameter`: a parameter is its tensor."""
    return tensor


def _dictionary(*_: object) -> dict[str, Any]:
    return {}


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _dictionary,
}


def _call(function: object, arguments: object) -> Any:
    """What stands for the result of a call."""
    if isinstance(function, Foreign):
        return function
    if not isinstance(function, _Function) or not isinstance(arguments, tuple):
        raise Damaged("its pickle calls something that is no function")
    return _FUNCTIONS[function.name](*arguments)


def _storage(reference: object) -> StorageRef:
    """What stands for a persistent id: ("storage", kind, key, device, number of elements)."""
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        raise Damaged("a storage is described in an unknown way")
    _, kind, key, _, n_elements = reference
    if isinstance(kind, Foreign):
        raise Damaged(f"it refers to {kind}")
    # litGPT numbers its storages, torch writes the numbers as strings
    if not (isinstance(kind, str) and type(key) in (str, int) and type(n_elements) is int):
        raise Damaged("a storage is described in an unknown way")
    return StorageRef(kind, str(key), n_elements)


class _Machine:
    """The stack and the memo of an unpickler, for the opcodes that dictionaries of tensors consist of."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        (value,) = self._stack
        return value

    def run(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        stack, memo = self._stack, self._memo
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case _ if name in _NEW:
                stack.append(_NEW[name]())
            case _:
                self._combine(name, argument)

    def _combine(self, name: str, argument: Any) -> None:
        """Carry out an opcode that makes something of what is on the stack."""
        match name:
            case "TUPLE":
                self._stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._stack.append(tuple(self._pop(int(name[-1]))))
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "APPEND":
                self._append(self._pop(1))
            case "APPENDS":
                self._append(self._pop_to_mark())
            case _:
                self._refer(name, argument)

    def _refer(self, name: str, argument: Any) -> None:
        """Carry out an opcode that stands for a function, a call or a storage."""
        match name:
            case "GLOBAL":
                self._stack.append(_global(argument))
            case "STACK_GLOBAL":
                self._stack.append(_global(" ".join(self._pop(2))))
            case "BINPERSID":
                self._stack.append(_storage(*self._pop(1)))
            case "REDUCE":
                self._stack.append(_call(*self._pop(2)))
            case "NEWOBJ":
                kind, _ = self._pop(2)
                if not isinstance(kind, Foreign):
                    raise Damaged("its pickle makes an object of something that is no class")
                self._stack.append(kind)
            case "BUILD":  # the attributes of an OrderedDict, such as the version of a state_dict
                self._pop(1)
            case _:
                raise Damaged(f"its pickle has the operation {name}")

    def _pop(self, n: int) -> list[Any]:
        if len(self._stack) < n:
            raise IndexError(n)
        values = self._stack[-n:]
        del self._stack[-n:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Foreign):
            return
        if not isinstance(target, dict):
            raise Damaged("its pickle puts items into something else than a dictionary")
        pairs = zip(items[::2], items[1::2], strict=True)
        # No tensor has another key than these; and to hash a tuple of tuples of tuples can overflow the stack.
        target.update((key, value) for key, value in pairs if type(key) in (str, int))

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Foreign):
            return
        if not isinstance(target, list):
            raise Damaged("its pickle appends to something else than a list")
        target.extend(values)
