"""Pickles from outside, read as data: a pickle is a program, and nothing of it is run.

Python's `Unpickler` calls whatever a pickle names. Here the opcodes are read one by one
(`pickletools.genops`) and only say what they would have made: a global is a name, a call is a note
of what would be called with what. A global must be one that the caller expects; time and memory are
bounded by the length of the pickle and the number of its opcodes.
Source: the opcodes' descriptions in Python's `pickletools`.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from convert.errors import InputError

LARGEST_PICKLE = 16 << 20  # bytes; that of SDXL has about 0.3 million
MOST_OPCODES = 1 << 20  # that of SDXL has 60,000
LONGEST_KEY = 1024  # letters; of globals, too
LARGEST_INTEGER = 16  # bytes
MALICIOUS = (
    "Nothing of it was run. Weights need no such thing, so it may be malicious: take them as "
    ".safetensors, or from another source."
)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class Named:
    """A global: a function or class, by its name alone."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class Made:
    """What a call would have given: nothing was called."""

    by: Named
    arguments: tuple[Any, ...]


Allowed = Callable[[Named], bool]
Persistent = Callable[[Any], Any]

_DICTIONARIES = {
    Named("collections", "OrderedDict"),
    Named("builtins", "dict"),
    Named("__builtin__", "dict"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "BINSTRING", "SHORT_BINSTRING", "STRING", "UNICODE", "INT", "LONG", "FLOAT",
}  # fmt: skip
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_COLLECTIONS: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_MARK = object()


def read_pickle(
    data: bytes,
    where: object,
    *,
    start: int = 0,
    allowed: Allowed = lambda named: False,
    persistent: Persistent | None = None,
) -> tuple[Any, int]:
    """The value that a pickle describes, and where in `data` it ends.

    Dictionaries (ordered ones, too), lists, tuples, numbers and texts are themselves; whatever else
    a call would have made is a `Made`, whose state is dropped. Values may hold themselves.

    Args:
        data: holds the pickle, from `start`.
        where: what errors call it, such as its file.
        allowed: whether a global may be named.
        persistent: gives the value of a persistent id; None if there must be none.

    Raises:
        InputError: a global that is not allowed (by its name), something that is no pickle of
            protocols 0 to 5, a damaged or cut one, or one of too many steps.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    machine = _Machine(where, allowed, persistent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in texts, which Python deprecates
            for opcode, argument, _ in pickletools.genops(stream):
                machine.step(opcode.name, argument)
    except _Underflow:
        raise machine.bad("takes values that are not there") from None
    except (ValueError, OverflowError, struct.error, EOFError) as error:
        cut = "is cut or no pickle" if "exhausted" in str(error) else "is damaged"
        raise machine.bad(cut) from None
    if len(machine.stack) != 1 or machine.stack[0] is _MARK:
        raise machine.bad("does not end with one value")
    return machine.stack[0], stream.tell()


class _Underflow(Exception):
    """A value was asked for that the stack does not have."""


@dataclass
class _Machine:
    """The stack machine that pickles are programs of; it builds values and calls nothing."""

    where: object
    allowed: Allowed
    persistent: Persistent | None
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    marks: list[int] = field(default_factory=list)
    steps: int = 0

    def bad(self, what: str) -> InputError:
        """The error that the pickle is no good."""
        hint = "The file is damaged or no file of weights: download it again."
        return InputError(f"its pickle {what}", where=self.where, hint=hint)

    def step(self, opcode: str, argument: Any) -> None:
        """Do what one opcode says."""
        self.steps += 1
        if self.steps > MOST_OPCODES:
            raise self.bad(f"has more than {MOST_OPCODES} opcodes; at most that many are read")
        if opcode in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > 8 * LARGEST_INTEGER:
                raise self.bad(f"holds an integer of {argument.bit_length()} bits")
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = self.top()
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            if argument not in self.memo:
                raise self.bad(f"takes entry {argument} of its memo, which is not there")
            self.stack.append(self.memo[argument])
        elif opcode in _TUPLES:
            self.stack.append(tuple(self.take(_TUPLES[opcode])))
        elif opcode in _COLLECTIONS:
            self.stack.append(_COLLECTIONS[opcode]())
        elif (rule := _RULES.get(opcode)) is not None:
            rule(self, argument)
        else:
            raise self.bad(f"has the opcode {opcode}, which files of weights do not need")

    # ---- the stack ----

    def top(self) -> Any:
        """The last value."""
        if not self.stack or self.stack[-1] is _MARK:
            raise _Underflow
        return self.stack[-1]

    def take(self, count: int) -> list[Any]:
        """The last `count` values, which leave the stack."""
        floor = self.marks[-1] + 1 if self.marks else 0
        if len(self.stack) - count < floor:
            raise _Underflow
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def to_mark(self) -> list[Any]:
        """The values after the last mark; both leave the stack."""
        if not self.marks:
            raise _Underflow
        at = self.marks.pop()
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    # ---- opcodes ----

    def mark(self, _: Any) -> None:
        """A mark, which collections reach back to."""
        self.marks.append(len(self.stack))
        self.stack.append(_MARK)

    def pop(self, _: Any) -> None:
        """Drop the last value, or the last mark."""
        if self.stack and self.stack[-1] is _MARK:
            self.to_mark()
        else:
            self.take(1)

    def name(self, module: str, name: str) -> None:
        """A global, if it is allowed."""
        both = f"{module}.{name}"
        shown = both if len(both) <= 80 and both.isprintable() else ascii(both)[:80]
        is_short = len(both) <= LONGEST_KEY
        if is_short and _MODULE.fullmatch(module) and _NAME.fullmatch(name):
            named = Named(module, name)
            if self.allowed(named):
                self.stack.append(named)
                return
        raise InputError(f"its pickle names `{shown}`", where=self.where, hint=MALICIOUS)

    def global_(self, argument: str) -> None:
        """A global that is named in the opcode."""
        module, _, name = argument.partition(" ")
        self.name(module, name)

    def stack_global(self, _: Any) -> None:
        """A global whose two names are on the stack."""
        module, name = self.take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.bad("names a global by what is no text")
        self.name(module, name)

    def call(self, by: Any, arguments: Any) -> None:
        """Note a call; an ordered dictionary is one at once."""
        if not isinstance(by, Named) or not isinstance(arguments, tuple):
            raise self.bad("calls what is no function")
        if by in _DICTIONARIES:
            made: dict[Any, Any] = {}
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
            self.steps += len(pairs)  # one list may be given many times
            for pair in pairs:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise self.bad(f"gives {by} what are no pairs")
                self.enter(made, *pair)
            self.stack.append(made)
        else:
            self.stack.append(Made(by, arguments))

    def reduce(self, _: Any) -> None:
        """A call with a tuple of arguments."""
        self.call(*self.take(2))

    def new_with_keywords(self, _: Any) -> None:
        """A call with keywords, which are dropped."""
        by, arguments, _keywords = self.take(3)
        self.call(by, arguments)

    def instance(self, argument: str) -> None:
        """A call of a global that is named in the opcode."""
        self.global_(argument)
        by = self.stack.pop()
        self.call(by, tuple(self.to_mark()))

    def object_(self, _: Any) -> None:
        """A call of what stands first after the mark."""
        by, *arguments = self.to_mark() or [None]
        self.call(by, tuple(arguments))

    def build(self, _: Any) -> None:
        """The state of the last value, which is dropped."""
        self.take(1)
        if not isinstance(self.top(), Made | dict):
            raise self.bad("gives a state to what has none")

    def persistent_id(self, _: Any) -> None:
        """What the file holds beside the pickle, by its id."""
        (identifier,) = self.take(1)
        if self.persistent is None:
            raise self.bad("has a persistent id where none can be")
        self.stack.append(self.persistent(identifier))

    def append(self, _: Any) -> None:
        """One value more for a list."""
        self.extend(self.take(1))

    def appends(self, _: Any) -> None:
        """The values after the mark for a list."""
        self.extend(self.to_mark())

    def extend(self, values: list[Any]) -> None:
        """Values for the list on the stack; what an object of another kind is given is dropped."""
        if isinstance(self.top(), list):
            self.top().extend(values)
        elif not isinstance(self.top(), Made):
            raise self.bad("appends to what is no list")

    def set_item(self, _: Any) -> None:
        """One value more for a dictionary."""
        self.update(self.take(2))

    def set_items(self, _: Any) -> None:
        """The keys and values after the mark for a dictionary."""
        self.update(self.to_mark())

    def update(self, values: list[Any]) -> None:
        """Keys and values, by turns, for the dictionary on the stack; else as in `extend`."""
        if len(values) % 2:
            raise self.bad("has a key without a value")
        target = self.top()
        if isinstance(target, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                self.enter(target, key, value)
        elif not isinstance(target, Made):
            raise self.bad("sets an item of what is no dictionary")

    def enter(self, target: dict[Any, Any], key: Any, value: Any) -> None:
        """One item; keys that are neither texts nor numbers count as all different."""
        if isinstance(key, str):
            if len(key) > LONGEST_KEY:
                raise self.bad(f"has a key of {len(key)} letters")
            if key in target:
                raise self.bad(f"has the key {ascii(key)[:80]} twice")
        elif not isinstance(key, int | float | Named):
            key = object()
        target[key] = value

    def dictionary(self, _: Any) -> None:
        """A dictionary of the keys and values after the mark."""
        values = self.to_mark()
        self.stack.append({})
        self.update(values)

    def empty_set(self, _: Any) -> None:
        """A set, of which no more is kept than that it is one."""
        self.stack.append(Made(Named("builtins", "set"), ()))

    def frozen_set(self, _: Any) -> None:
        """A set of what stands after the mark; as in `empty_set`."""
        self.to_mark()
        self.stack.append(Made(Named("builtins", "frozenset"), ()))


_RULES: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "STOP": lambda machine, argument: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, argument: machine.to_mark().clear(),
    "DUP": lambda machine, argument: machine.stack.append(machine.top()),
    "MEMOIZE": lambda machine, argument: machine.memo.update({len(machine.memo): machine.top()}),
    "TUPLE": lambda machine, argument: machine.stack.append(tuple(machine.to_mark())),
    "LIST": lambda machine, argument: machine.stack.append(machine.to_mark()),
    "DICT": _Machine.dictionary,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "INST": _Machine.instance,
    "OBJ": _Machine.object_,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.appends,
    "EMPTY_SET": _Machine.empty_set,
    "FROZENSET": _Machine.frozen_set,
}
