"""What the kernels of a compiled GPU program read and write, counted from XLA's text of it.

XLA's text of a scheduled program lists what is started on the device, one instruction a kernel. All
of an instruction's inputs and results pass through the device's memory, unless a cache still holds
them; what happens within one (a fusion) does not.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

KINDS = ("convolution", "product", "reduction", "copy", "elementwise")

_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b(pred|bf16|[csuf]\d+)\w*\[([\d,]*)\]")
# %name = SHAPE opcode(%operand, ...), attributes
_LINE = re.compile(
    r"^\s*(?P<root>ROOT )?%(?P<name>\S+) = (?P<shape>.*?) (?P<opcode>[a-z][\w-]*)\((?P<rest>.*)$"
)
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>\S+) \(.*\{$")
# No kernels: names of what is there already, or what other instructions count.
_FREE = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_SLICES = {"dynamic-slice", "gather", "slice"}
_VIEWS = {"bitcast", "reshape"}
# Of a fusion of these alone nothing is computed: values are moved or made.
_MOVES = _FREE | _SLICES | _VIEWS
_MOVES |= {"broadcast", "concatenate", "convert", "copy", "iota", "pad", "reverse", "transpose"}
_MOVES |= {"dynamic-update-slice"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # the line after the opcode
    root: bool

    @property
    def size(self) -> int:
        """Bytes of its result, of all parts of a tuple."""
        return sum(
            _item_bytes(kind) * math.prod(int(n) for n in sides.split(",") if n)
            for kind, sides in _ARRAY.findall(self.shape)
        )

    def called(self, *attributes: str) -> list[str]:
        """Names of computations in attributes, as in `calls=%a` or `branches={%a, %b}`."""
        found = re.findall(rf"\b(?:{'|'.join(attributes)})=(%[^\s,]+|\{{[^}}]*\}})", self.rest)
        return re.findall(r"%([^\s,}]+)", " ".join(found))


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What is started on the device at once."""

    name: str
    kind: str  # one of KINDS
    read: int  # bytes
    written: int
    repeats: int  # by the loops around it
    source: str  # where in the traced program it comes from

    @property
    def moved(self) -> int:
        """Bytes of all its runs."""
        return self.repeats * (self.read + self.written)


def kernels(text: str) -> list[Kernel]:
    """All that a run starts, in order; `text` is `compiled.as_text()` of a GPU program.

    Raises:
      ValueError: not such a text, or a loop whose length it does not say.
    """
    computations: dict[str, Computation] = {}
    entry, inside = "", Computation()
    for line in text.splitlines():
        if head := _HEAD.match(line):
            inside = computations[head["name"]] = {}
            entry = head["name"] if head["entry"] else entry
        elif found := _LINE.match(line):
            operands = tuple(re.findall(r"%([^\s,)]+)", _operands(found["rest"])))
            inside[found["name"]] = Instruction(
                found["name"],
                found["shape"],
                found["opcode"],
                operands,
                found["rest"],
                bool(found["root"]),
            )
    if not entry:
        raise ValueError("no ENTRY computation: not the text of a compiled program")
    return list(_kernels(computations, entry, 1))


def by_kind(found: Sequence[Kernel]) -> dict[str, int]:
    """Bytes moved by all kernels of each kind."""
    return {kind: sum(k.moved for k in found if k.kind == kind) for kind in KINDS}


def _item_bytes(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return _BYTES[kind] if kind in _BYTES else int(bits[0]) // 8 if bits else 0


def _operands(rest: str) -> str:
    """Up to the bracket that closes them."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:place]
    return rest


def _kernels(computations: Mapping[str, Computation], name: str, repeats: int) -> Iterator[Kernel]:
    inside = computations[name]
    for one in inside.values():
        if one.opcode == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.rest)
            if not trips:
                raise ValueError(f"{one.name}: a loop of unknown length")
            (body,) = one.called("body")
            yield from _kernels(computations, body, repeats * int(trips[1]))
        elif one.opcode == "call":
            (called,) = one.called("to_apply")
            yield from _kernels(computations, called, repeats)
        elif one.opcode == "conditional":
            names = one.called("branch_computations", "true_computation", "false_computation")
            branches = [list(_kernels(computations, branch, repeats)) for branch in names]
            yield from max(branches, key=lambda found: sum(k.moved for k in found))
        elif one.opcode not in _FREE and not one.opcode.endswith(("-done", "-update")):
            fused = computations[one.called("calls")[0]] if one.called("calls") else {}
            read, written = _fusion_traffic(fused) if fused else _traffic(one, inside)
            source = re.search(r'op_name="([^"]*)"', one.rest)
            kind = _kind(one, fused)
            yield Kernel(one.name, kind, read, written, repeats, source[1] if source else "")


def _traffic(one: Instruction, inside: Computation) -> tuple[int, int]:
    """Bytes that an instruction by itself reads and writes."""
    if one.opcode == "dynamic-update-slice":  # in place
        size = inside[one.operands[1]].size
        return size, size
    sizes = sum(inside[name].size for name in one.operands)
    return (min(sizes, one.size) if one.opcode in _SLICES else sizes), one.size


def _fusion_traffic(fused: Computation) -> tuple[int, int]:
    """Bytes that a fusion reads and writes. Of what it only takes slices of, those slices."""
    users: dict[str, list[Instruction]] = {name: [] for name in fused}
    for one in fused.values():
        for operand in one.operands:
            users[operand].append(one)

    @functools.cache
    def share(name: str) -> float:
        """How much of an array its users need."""
        one = fused[name]
        needed = float(one.root)
        for user in users[name]:
            if user.opcode in _SLICES and user.operands[0] == name:
                needed += share(user.name) * user.size / one.size
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                pass  # in place: the rest stays where it is
            else:
                needed += share(user.name)
        return min(1.0, needed)

    def origin(one: Instruction) -> Instruction:
        return origin(fused[one.operands[0]]) if one.opcode in _VIEWS else one

    read = sum(share(i.name) * i.size for i in fused.values() if i.opcode == "parameter")
    (root,) = (one for one in fused.values() if one.root)
    names = root.operands if root.opcode == "tuple" else (root.name,)
    results = [origin(fused[name]) for name in names]
    changed = [fused[r.operands[1]] if r.opcode == "dynamic-update-slice" else r for r in results]
    return round(read), sum(one.size for one in changed)


def _kind(one: Instruction, fused: Computation) -> str:
    target = re.search(r'custom_call_target="([^"]*)"', one.rest)
    opcodes = {i.opcode for i in fused.values()} or {one.opcode}
    if target and "conv" in target[1] or "convolution" in opcodes:
        return "convolution"
    if target and "cublas" in target[1] or "dot" in opcodes:
        return "product"
    if opcodes & {"reduce", "reduce-window"}:
        return "reduction"
    return "copy" if opcodes <= _MOVES else "elementwise"
