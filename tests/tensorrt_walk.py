"""Source that uses TensorRT, held to one version's bindings: names, attributes, argument counts and keywords.

It follows annotations (``config: trt.IBuilderConfig``), constructors, and the types that signatures return.  In return
it demands annotations: an attribute that only TensorRT has, on something of unknown type, is a finding too.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

Surface = dict[str, Any]
"""What ``stand_in.surface`` dumps."""


@dataclass(frozen=True)
class Known:
    """What is known of an expression: the module, a class, an object of a class, a method, or several in a tuple."""

    what: str
    name: str = ""
    detail: Any = field(default=None, compare=False)


class Walk:
    """One version's view of some sources.

    Args:
        surface: of that version.
        sources: file name to text; functions may return TensorRT's objects to one another.
    """

    def __init__(self, surface: Surface, sources: dict[str, str]) -> None:
        self.surface = surface
        self.findings: list[str] = []
        self.checked: set[str] = set()
        self._trees = {name: ast.parse(text) for name, text in sources.items()}
        self._returns: dict[str, Known] = {}
        self._names: list[dict[str, Known]] = [{}]
        self._only_tensorrt = {
            attribute
            for name, kind in surface["classes"].items()
            for attribute in kind["attributes"]
            if "_" in attribute.strip("_") and not attribute.startswith("_")
        }
        self._file = ""

    def run(self) -> list[str]:
        """The findings, each with file and line."""
        for tree in self._trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and node.returns is not None:
                    known = self._annotated(node.returns)
                    if known:
                        self._returns[node.name] = known
        for name, tree in self._trees.items():
            self._file, self._names = name, [{}]
            self._see(tree)
        return self.findings

    def _find(self, node: ast.AST, text: str) -> None:
        self.findings.append(f"{self._file}:{getattr(node, 'lineno', 0)}: {text}")

    # What a node is

    def _see(self, node: ast.AST | None) -> Known | None:
        if node is None:
            return None
        handler = getattr(self, f"_see_{type(node).__name__.lower()}", None)
        if handler:
            known: Known | None = handler(node)
            return known
        for child in ast.iter_child_nodes(node):
            self._see(child)
        return None

    def _see_import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name == "tensorrt":
                self._names[-1][alias.asname or alias.name] = Known("module")

    def _see_functiondef(self, node: ast.FunctionDef) -> None:
        self._names.append({})
        for argument in (*node.args.args, *node.args.kwonlyargs):
            self._bind(argument.arg, self._see_annotation(argument.annotation))
        self._see_annotation(node.returns)
        for child in (*node.decorator_list, *node.args.defaults, *node.body):
            self._see(child)
        self._names.pop()

    def _see_classdef(self, node: ast.ClassDef) -> None:
        bases = [known for known in map(self._see, node.bases) if known and known.what == "class"]
        for base in bases:
            self._overrides(node, base)
        self._names.append({})
        for inner in ast.walk(node):  # attributes of self are annotated somewhere in the class
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Attribute):
                self._bind(f"self.{inner.target.attr}", self._annotated(inner.annotation))
        for child in node.body:
            self._see(child)
        self._names.pop()

    def _see_annassign(self, node: ast.AnnAssign) -> None:
        self._see(node.value)
        known = self._see_annotation(node.annotation)
        if isinstance(node.target, ast.Name):
            self._bind(node.target.id, known)

    def _see_assign(self, node: ast.Assign) -> None:
        known = self._see(node.value)
        for target in node.targets:
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            parts = known.detail if known and known.what == "tuple" else [known] * len(targets)
            for part, one in zip(parts, targets, strict=False):
                if isinstance(one, ast.Name):
                    self._bind(one.id, part)
                elif isinstance(one, ast.Attribute):
                    self._store(one, part)

    def _store(self, target: ast.Attribute, value: Known | None) -> None:
        owner = self._see(target.value)
        if owner and owner.what == "object":
            entry = self._entry(target, owner)
            if entry and not entry.get("settable"):
                self._find(target, f"{owner.name}.{target.attr} cannot be set")
        elif isinstance(target.value, ast.Name) and target.value.id == "self":
            self._bind(f"self.{target.attr}", value)
        elif owner is None:
            self._demand_annotation(target)

    def _see_name(self, node: ast.Name) -> Known | None:
        for names in reversed(self._names):
            if node.id in names:
                return names[node.id]
        return None

    def _see_attribute(self, node: ast.Attribute) -> Known | None:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self._see_name(ast.Name(f"self.{node.attr}"))
        owner = self._see(node.value)
        if owner is None:
            self._demand_annotation(node)
            return None
        if owner.what == "module":
            return self._module_attribute(node)
        if owner.what not in ("class", "object"):
            return None
        entry = self._entry(node, owner)
        return self._meaning(entry, owner, node.attr) if entry else None

    def _demand_annotation(self, node: ast.Attribute) -> None:
        if node.attr in self._only_tensorrt and self._file.startswith("trt_"):
            self._find(node, f"what .{node.attr} belongs to is not annotated")

    def _see_call(self, node: ast.Call) -> Known | None:
        for child in (*node.args, *(keyword.value for keyword in node.keywords)):
            self._see(child)
        if isinstance(node.func, ast.Name) and node.func.id in self._returns:
            return self._returns[node.func.id]
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "hasattr"):
            known = self._see(node.args[0])
            if known is not None:
                self._find(node, f"{node.func.id} on TensorRT hides a name from this walk")
        known = self._see(node.func)
        if known is None:
            return None
        if known.what == "class":
            initializer = self._class(known)["attributes"]["__init__"]
            self._arguments(node, f"{known.name}()", initializer.get("overloads", []), unbound=False)
            return Known("object", known.name)
        if known.what in ("method", "unbound"):
            returns = self._arguments(node, known.name, known.detail, unbound=known.what == "unbound")
            return self._named(returns)
        return None

    # What the bindings say

    def _module_attribute(self, node: ast.Attribute) -> Known | None:
        self.checked.add(node.attr)
        if node.attr in self.surface["classes"]:
            return Known("class", node.attr, self.surface["classes"][node.attr])
        if node.attr not in self.surface["names"]:
            self._find(node, f"tensorrt has no {node.attr}")
        return None

    def _class(self, known: Known) -> dict[str, Any]:
        found: dict[str, Any] = known.detail or self.surface["classes"][known.name]
        return found

    def _entry(self, node: ast.Attribute, owner: Known) -> dict[str, Any] | None:
        self.checked.add(f"{owner.name}.{node.attr}")
        entry: dict[str, Any] | None = self._class(owner)["attributes"].get(node.attr)
        if entry is None:
            self._find(node, f"{owner.name} has no {node.attr}")
        return entry

    def _meaning(self, entry: dict[str, Any], owner: Known, name: str) -> Known | None:
        if entry["kind"] == "class":
            return Known("class", f"{owner.name}.{name}", entry)
        if entry["kind"] == "property" and owner.what == "object":
            return self._named(entry["returns"])
        if entry["kind"] == "method":
            what = "unbound" if owner.what == "class" else "method"
            return Known(what, f"{owner.name}.{name}", entry["overloads"])
        return None

    def _arguments(self, node: ast.Call, what: str, overloads: list[dict[str, Any]], *, unbound: bool) -> str:
        """Hold a call to the overloads; what it returns, or nothing where none takes it."""
        given = len(node.args) - unbound
        keywords = {keyword.arg for keyword in node.keywords}
        for overload in overloads:
            names = [argument["name"] for argument in overload["arguments"] if argument["name"] != "self"]
            needed = {a["name"] for a in overload["arguments"] if not a["optional"]} - {"self"}
            if given <= len(names) and keywords <= set(names[given:]) and needed <= {*names[:given], *keywords}:
                return str(overload["returns"])
        if overloads:
            shown = "; ".join(", ".join(a["name"] for a in overload["arguments"]) for overload in overloads)
            self._find(node, f"{what} takes ({shown}), not {given} arguments and {sorted(map(str, keywords))}")
        else:
            self._find(node, f"{what} has no signature to hold this call to")
        return ""

    def _named(self, text: str) -> Known | None:
        """The class that a signature returns, as pybind11 or C++ write it."""
        last = text.split(".")[-1].split("::")[-1].strip()
        for name in (last, last.removeprefix("I")):
            if name in self.surface["classes"]:
                return Known("object", name)
        return None

    def _overrides(self, node: ast.ClassDef, base: Known) -> None:
        """A subclass must define the interface's methods, with its parameter names."""
        own = {child.name: child for child in node.body if isinstance(child, ast.FunctionDef)}
        for name, entry in self._class(base)["attributes"].items():
            if entry["kind"] != "method" or name.startswith("_"):
                continue
            self.checked.add(f"{base.name}.{name}")
            wanted = [argument["name"] for argument in entry["overloads"][0]["arguments"]]
            found = [argument.arg for argument in own[name].args.args[1:]] if name in own else None
            if found != wanted:
                self._find(node, f"{node.name}.{name} takes {found}; {base.name} calls it with {wanted}")

    # Annotations

    def _see_annotation(self, node: ast.expr | None) -> Known | None:
        self._see(node)
        return self._annotated(node)

    def _annotated(self, node: ast.expr | None) -> Known | None:
        if isinstance(node, ast.BinOp):
            return self._annotated(node.left) or self._annotated(node.right)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
            parts = [self._annotated(part) for part in node.slice.elts]
            return Known("tuple", detail=parts) if any(parts) else None
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trt":
            return Known("object", node.attr) if node.attr in self.surface["classes"] else None
        return None

    def _bind(self, name: str, known: Known | None) -> None:
        if known is not None:
            self._names[-1 if not name.startswith("self.") else self._class_level()][name] = known
        elif not name.startswith("self."):
            self._names[-1].pop(name, None)

    def _class_level(self) -> int:
        return 1 if len(self._names) > 1 else 0
