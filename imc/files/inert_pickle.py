"""Pickles read as data: what they name stays a name. Nothing is imported, called, compared or hashed but texts."""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import IO, Any


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names."""

    text: str


@dataclass(frozen=True)
class Reference:
    """What a pickle leaves to its reader: the persistent id of a storage, in files of torch."""

    id: Any


@dataclass(eq=False)
class Object:
    """What a pickle would have built by a call.

    Attributes:
        callee: what it would have called, a :class:`Name` in any sensible pickle.
        arguments: of the call.
        state: what it would have set afterwards.
        items: what it would have put in by key, as into a dict.
    """

    callee: Any
    arguments: Any
    state: Any = None
    items: dict[str | int, Any] = field(default_factory=dict)


def read_pickle(file: IO[bytes], references: list[Reference] | None = None) -> Any:
    """The next pickle in a file, of any protocol; the file is left behind it.

    Numbers, texts, bytes, lists, tuples and dicts are what they are, sets are lists. Entries of dicts whose keys are
    neither texts nor integers of 64 bits are left out: to hash a key that is nested deeply would take years.

    Args:
        file: at the pickle's first byte.
        references: takes the persistent ids in the pickle.

    Raises:
        ValueError: it is damaged, or no pickle.
    """
    try:
        return _Machine([] if references is None else references).run(file)
    except Exception:  # whatever an arbitrary sequence of bytes makes pickletools or the machine raise
        raise ValueError("it is damaged, or no pickle") from None


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_IGNORED = {"PROTO", "FRAME", "READONLY_BUFFER"}


class _Machine:
    """Carries out the instructions of a pickle, building :class:`Object` where pickle would call."""

    def __init__(self, references: list[Reference]) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.references = references

    def run(self, file: IO[bytes]) -> Any:
        argument: Any
        for instruction, argument, _ in pickletools.genops(file):
            name = instruction.name
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                self.stack.append(self.memo[argument])
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                self.memo[argument] = self.stack[-1]
            elif name == "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            elif name not in _IGNORED:
                self._step(name, argument)
        return self.stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "MARK":
            self.marks.append(len(stack))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(name[-1]) :] = [tuple(self._last(int(name[-1])))]
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("LIST", "FROZENSET"):
            stack.append(self._since_mark())
        elif name == "DICT":
            stack.append(_put({}, self._since_mark()))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)  # of a class of its own, nothing is known about its items
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._since_mark()
            _put(stack[-1].items if isinstance(stack[-1], Object) else stack[-1], items)
        elif name in ("POP", "POP_MARK"):
            _ = self._since_mark() if name == "POP_MARK" or self.marks[-1:] == [len(stack)] else stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PERSID", "BINPERSID"):
            self.references.append(Reference(argument if name == "PERSID" else stack.pop()))
            stack.append(self.references[-1])
        else:
            self._call(name, argument)

    def _call(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "GLOBAL":
            stack.append(Name(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            module, qualified = self._last(2)
            stack[-2:] = [Name(f"{module}.{qualified}" if type(module) is type(qualified) is str else "")]
        elif name in ("REDUCE", "NEWOBJ"):
            stack[-2:] = [Object(*self._last(2))]
        elif name == "NEWOBJ_EX":
            stack[-3:] = [Object(*self._last(3)[:2])]
        elif name == "INST":
            stack.append(Object(Name(argument.replace(" ", ".", 1)), tuple(self._since_mark())))
        elif name == "OBJ":
            callee, *arguments = self._since_mark()
            stack.append(Object(callee, tuple(arguments)))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Object):
                stack[-1].state = state
        elif name != "STOP":
            raise ValueError(f"it has the instruction {name}")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("an instruction lacks its operands")
        return self.stack[-count:]


def _put(target: dict[str | int, Any], items: list[Any]) -> dict[str | int, Any]:
    target.update({key: value for key, value in zip(items[::2], items[1::2], strict=True) if _is_key(key)})
    return target


def _is_key(node: Any) -> bool:
    return type(node) is str or (type(node) is int and node.bit_length() < 64)
