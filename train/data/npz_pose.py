"""HumanSD's .npz poses without unpickling: `arr_0` is an object array, so a pickle, of dicts with `keypoints` [17,3].

Its opcodes are read as a notation: numbers, texts, lists, dicts and numeric arrays come out, no object is built and no function called.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from kbdm_core.errors import PoseError
from train.data.entries import read_bytes

MAX_BYTES = 1 << 20  # a person takes about 300 bytes
MAX_PEOPLE = 1000
MAX_OPCODES = 100_000  # a person takes about 55
NUMERIC = re.compile(r"f[248]|[iu][1248]|b1")
RECONSTRUCT, SCALAR, DTYPE, NDARRAY = "_reconstruct", "scalar", "dtype", "ndarray"
NAMES = {
    **{f"numpy.{core}.multiarray {name}": name for core in ("core", "_core") for name in (RECONSTRUCT, SCALAR)},  # numpy 1 and numpy 2
    **{f"numpy {name}": name for name in (DTYPE, NDARRAY)},
}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_npz_bodies(path: Path) -> list[np.ndarray]:
    """The keypoints [17,3] (x, y, score) of every person, of any numeric dtype. Raises PoseError, or DataError if the file cannot be read."""
    data = read_bytes(path, MAX_BYTES)
    try:
        people = _read_npy(_read_member(data))
        if len(people) > MAX_PEOPLE:
            raise PoseError(f"arr_0 holds {len(people)} people; at most {MAX_PEOPLE} are read")
        return [_keypoints(person) for person in people]
    except PoseError as error:
        raise PoseError(f"{path.name}: {error}") from error
    except Exception as error:  # zip, npy header and opcodes: broken bytes raise nearly every type there is
        raise PoseError(f"{path.name}: not a readable .npz pose ({type(error).__name__}: {error})") from error


@dataclass(eq=False)
class _Name:
    """A function or class that the pickle names, one of NAMES."""

    name: str


@dataclass(eq=False)
class _DType:
    """A numpy dtype in the making: "f4", "O8", and its byte order."""

    text: str
    order: str = "="


@dataclass(eq=False)
class _Array:
    """An array in the making: a numeric numpy array, or the list of an object array."""

    values: np.ndarray | list | None = None


def _keypoints(person: object) -> np.ndarray:
    keypoints = _of(dict, person).get("keypoints")
    values = keypoints.values if isinstance(keypoints, _Array) else keypoints
    if not isinstance(values, np.ndarray) or values.shape != (17, 3):
        found = f"an array {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        raise PoseError(f"`keypoints` of a person is {found}; expected a numeric array [17, 3]")
    return values


def _read_member(data: bytes) -> io.BytesIO:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if "arr_0.npy" not in archive.namelist():
            raise PoseError(f"no `arr_0` in it, but {archive.namelist()[:5]}")
        with archive.open("arr_0.npy") as member:
            content = member.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise PoseError(f"arr_0 is larger than {MAX_BYTES} bytes")
    return io.BytesIO(content)


def _read_npy(content: io.BytesIO) -> list:
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[np.lib.format.read_magic(content)]
    shape, _, dtype = read_header(content)
    if not dtype.hasobject:
        if 0 not in shape:
            raise PoseError(f"arr_0 is an array {list(shape)} of {dtype}; expected a list of people")
        return []  # numpy saves an empty list as an array of floats
    array = _read_pickle(content.read())
    if not isinstance(array, _Array) or not isinstance(array.values, list):
        raise PoseError("arr_0 is no list of people")
    return array.values


def _read_pickle(data: bytes) -> object:
    """The value that the opcodes describe. Raises PoseError for opcodes and names that no pose needs, other errors for broken bytes."""
    stack: list = []
    marks: list[int] = []
    memo: dict[int, object] = {}

    def since_mark() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in islice(pickletools.genops(data), MAX_OPCODES):
        name = opcode.name
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("TUPLE", *TUPLES):
            items = since_mark() if name == "TUPLE" else [stack.pop() for _ in range(TUPLES[name])][::-1]
            stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            _of(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            _of(dict, stack[-1]).update((_of(str, key), value) for key, value in zip(items[::2], items[1::2]))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            wanted = argument if name == "GLOBAL" else " ".join(_of(str, part) for part in [stack.pop(), stack.pop()][::-1])
            if wanted not in NAMES:
                raise PoseError(f"its pickle names '{wanted[:80]}'; a pose needs numpy's arrays alone, so the file is refused")
            stack.append(_Name(NAMES[wanted]))
        elif name == "REDUCE":
            arguments = _of(tuple, stack.pop())
            stack.append(_reduce(_of(_Name, stack.pop()).name, arguments))
        elif name == "BUILD":
            state = _of(tuple, stack.pop())
            _build(stack[-1], state)
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise PoseError(f"its pickle has the opcode {name}, which no pose needs, so the file is refused")
    raise PoseError(f"its pickle has no end within {MAX_OPCODES} opcodes")


def _of(kind: type, value: object) -> object:
    if not isinstance(value, kind):
        raise PoseError(f"its pickle has {type(value).__name__} where {kind.__name__} belongs")
    return value


def _reduce(name: str, arguments: tuple) -> object:
    """What `name(*arguments)` stands for in numpy's pickles."""
    if name == DTYPE:
        return _DType(_of(str, arguments[0]))
    if name == RECONSTRUCT:
        return _Array()
    if name == SCALAR:
        return _numbers(_of(_DType, arguments[0]), _of(bytes, arguments[1]), ())
    raise PoseError(f"its pickle calls {name}, which no pose needs, so the file is refused")


def _build(target: object, state: tuple) -> None:
    """What `target.__setstate__(state)` stands for in numpy's pickles."""
    if isinstance(target, _DType):
        target.order = _of(str, state[1])
        return
    _, shape, dtype, fortran, content = state
    if _of(_DType, dtype).text.startswith("O"):
        _of(_Array, target).values = _of(list, content)
    else:
        _of(_Array, target).values = _numbers(dtype, _of(bytes, content), _of(tuple, shape), "F" if fortran else "C")


def _numbers(dtype: _DType, content: bytes, shape: tuple, order: str = "C") -> np.ndarray:
    if not NUMERIC.fullmatch(dtype.text) or dtype.order not in "=<>|":
        raise PoseError(f"its pickle has an array of '{dtype.order}{dtype.text}'; expected floats or integers")
    return np.frombuffer(content, dtype.order.replace("=", "<") + dtype.text).reshape(shape, order=order)
