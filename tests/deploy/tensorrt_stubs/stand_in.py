"""Objects of TensorRT's classes without TensorRT behind them, held to the genuine bindings.

Every attribute read or set and every call is checked against the class and the signature in the bindings that are
imported; what comes back is scripted, or a stand-in of the type that the signature promises.  Nothing is built or run
by TensorRT.
"""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Script = dict[tuple[str, str], Any]
"""(class, attribute) to a value, or for a method to a function of its arguments."""


class ViolationError(AssertionError):
    """The bindings have no such thing."""


@dataclass(frozen=True)
class Argument:
    """One parameter of a signature."""

    name: str
    kind: str
    optional: bool


@dataclass(frozen=True)
class Signature:
    """One overload."""

    arguments: tuple[Argument, ...]
    returns: str


def signatures(function: Any) -> list[Signature]:
    """Every overload that a pybind11 function's docstring names, ``self`` left out."""
    lines = (getattr(function, "__doc__", "") or "").strip().splitlines()
    heads = [re.sub(r"^\d+\. ", "", line) for line in lines]
    found = []
    for head in heads if "Overloaded function." in lines else heads[:1]:
        match = re.match(r"^\w*\((.*)\) -> (.+)$", head)
        if match:
            parts = [part for part in _split(match.group(1)) if not part.startswith(("self:", "arg0: object"))]
            found.append(Signature(tuple(_argument(part) for part in parts), match.group(2).strip()))
    return found


def _argument(text: str) -> Argument:
    name, _, rest = text.partition(":")
    kind, equals, _ = rest.partition(" = ")
    return Argument(name.strip(), kind.strip(), bool(equals))


def _split(text: str) -> list[str]:
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "[<(") - (letter in "]>)")
        if letter == "," and depth == 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    return [*parts, text[begin:].strip()] if text.strip() else []


class Bindings:
    """The genuine module, with its constructors replaced by ones that return stand-ins.

    Args:
        module: ``tensorrt_bindings``.
        script: what the stand-ins answer.
    """

    CONSTRUCTED = ("Builder", "OnnxParser", "Runtime", "Refitter", "OnnxParserRefitter")

    def __init__(self, module: Any, script: Script) -> None:
        self.module, self.script = module, script
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.constructed: weakref.WeakSet[StandIn] = weakref.WeakSet()
        """Those that somebody still holds."""
        self.logger: Any = None
        """The first that anything was constructed with: as in TensorRT, those of later objects hear nothing."""
        self.genuine = {name: getattr(module, name) for name in self.CONSTRUCTED}
        for name in self.CONSTRUCTED:
            setattr(module, name, self._constructor(name))

    def _constructor(self, name: str) -> Callable[..., StandIn]:
        def construct(*arguments: Any, **keywords: Any) -> StandIn:
            genuine = self.genuine[name]
            overloads = [
                Signature(tuple(a for a in s.arguments if a.name != "self"), s.returns)
                for s in signatures(genuine.__init__)
            ]
            self.check(f"{name}()", overloads, arguments, keywords)
            self.logger = self.logger or arguments[-1]
            made = StandIn(self, genuine)
            self.constructed.add(made)
            return made

        return construct

    def kind(self, text: str) -> Any:
        """The class that a signature names, as pybind11 or C++ write it; None for others."""
        last = text.split("=")[0].strip().split(".")[-1].split("::")[-1]
        for name in (last, last.removeprefix("I")):
            if isinstance(self.genuine.get(name) or getattr(self.module, name, None), type):
                return self.genuine.get(name) or getattr(self.module, name)
        return None

    def check(
        self, what: str, overloads: list[Signature], given: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Signature:
        """The overload that takes these arguments."""
        reasons = []
        for overload in overloads:
            reason = self._misfit(overload, given, keywords)
            if not reason:
                return overload
            reasons.append(reason)
        raise ViolationError(f"{what}: {'; '.join(reasons) or 'no signature in its docstring'}")

    def _misfit(self, signature: Signature, given: tuple[Any, ...], keywords: dict[str, Any]) -> str:
        names = [argument.name for argument in signature.arguments]
        if len(given) > len(names):
            return f"takes {len(names)} arguments, not {len(given)}"
        unknown = keywords.keys() - set(names[len(given) :])
        if unknown:
            return f"has no keyword {', '.join(sorted(unknown))} (it has {', '.join(names)})"
        bound = dict(zip(names, given, strict=False)) | keywords
        for argument in signature.arguments:
            if argument.name not in bound:
                if not argument.optional:
                    return f"lacks {argument.name}"
            elif not self._fits(bound[argument.name], argument.kind):
                return f"{argument.name} should be {argument.kind}, not {bound[argument.name]!r}"
        return ""

    def _fits(self, value: Any, kind: str) -> bool:
        plain = {"str": str, "bool": bool, "int": int, "typing.SupportsInt": int, "float": (int, float), "tuple": tuple}
        if kind in plain:
            return isinstance(value, plain[kind])
        if kind in ("buffer", "typing_extensions.Buffer", "collections.abc.Buffer"):
            return isinstance(value, (bytes, bytearray, memoryview)) or _is(value, "IHostMemory")
        wanted = self.kind(kind)
        if wanted is None:
            return kind == "object"
        if wanted is self.module.Dims and isinstance(value, (tuple, list)):
            return True  # pybind11 converts them
        return isinstance(value, wanted) or (isinstance(value, StandIn) and issubclass(value.stand_in_kind, wanted))

    def answer(self, owner: type, name: str, returns: str, arguments: tuple[Any, ...] | None) -> Any:
        """What the script says, or something of the promised type."""
        key = (owner.__name__, name)
        if key in self.script:
            scripted = self.script[key]
            return scripted(*arguments) if arguments is not None and callable(scripted) else scripted
        plain = {"bool": True, "int": 0, "str": "", "float": 0.0, "None": None}
        if returns in plain:
            return plain[returns]
        kind = self.kind(returns)
        if kind is None:
            raise ViolationError(f"{owner.__name__}.{name} returns {returns}, which the script must give")
        return StandIn(self, kind)


class StandIn:
    """One object; see the module."""

    def __init__(self, bindings: Bindings, kind: type) -> None:
        self.__dict__.update(stand_in_bindings=bindings, stand_in_kind=kind, stand_in_values={})

    def __getattr__(self, name: str) -> Any:
        bindings, kind = self.stand_in_bindings, self.stand_in_kind
        attribute = _attribute(kind, name)
        if isinstance(attribute, property):
            if name in self.stand_in_values:
                return self.stand_in_values[name]
            returns = re.search(r"-> (.+)$", ((attribute.fget.__doc__ or "").strip().splitlines() or [""])[0])
            return bindings.answer(kind, name, returns.group(1) if returns else "", None)

        def method(*arguments: Any, **keywords: Any) -> Any:
            signature = bindings.check(f"{kind.__name__}.{name}", signatures(attribute), arguments, keywords)
            given = (*arguments, *keywords.values())
            bindings.calls.append((kind.__name__, name, given))
            return bindings.answer(kind, name, signature.returns, given)

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        attribute = _attribute(self.stand_in_kind, name)
        if not isinstance(attribute, property) or attribute.fset is None:
            raise ViolationError(f"{self.stand_in_kind.__name__}.{name} cannot be set")
        setters = signatures(attribute.fset)
        wanted = setters[0].arguments[-1].kind if setters else "object"
        if not self.stand_in_bindings._fits(value, wanted):
            raise ViolationError(f"{self.stand_in_kind.__name__}.{name} takes {wanted}, not {value!r}")
        self.stand_in_values[name] = value
        self.stand_in_bindings.calls.append((self.stand_in_kind.__name__, f"{name} =", (value,)))

    def __bytes__(self) -> bytes:
        if not _is(self, "IHostMemory"):
            raise ViolationError(f"{self.stand_in_kind.__name__} is no buffer")
        return bytes(self.stand_in_bindings.script.get(("IHostMemory", "content"), b"plan"))


def _is(value: Any, name: str) -> bool:
    return isinstance(value, StandIn) and value.stand_in_kind.__name__ == name


def _attribute(kind: type, name: str) -> Any:
    try:
        found = inspect.getattr_static(kind, name)
    except AttributeError:
        raise ViolationError(f"{kind.__name__} has no {name}") from None
    return found if isinstance(found, property) else getattr(kind, name)


def surface(module: Any) -> dict[str, Any]:
    """The module as JSON: its names, and for each class its attributes with their signatures."""
    classes = {}
    for name, value in vars(module).items():
        if isinstance(value, type):
            classes[name] = _class_surface(value)
    return {"version": module.__version__, "names": sorted(vars(module)), "classes": classes}


def _class_surface(kind: type) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for name in dir(kind):
        static = inspect.getattr_static(kind, name)
        entry: dict[str, Any] = {"kind": "value"}
        if isinstance(static, type):
            entry = {"kind": "class", "name": static.__name__, **_class_surface(static)}
        elif isinstance(static, property):
            getter = signatures(static.fget)
            entry = {
                "kind": "property",
                "returns": getter[0].returns if getter else "",
                "settable": static.fset is not None,
            }
        elif callable(getattr(kind, name)):
            overloads = [
                {"arguments": [vars(argument) for argument in s.arguments], "returns": s.returns}
                for s in signatures(getattr(kind, name))
            ]
            entry = {"kind": "method", "overloads": overloads}
        attributes[name] = entry
    return {"attributes": attributes}
