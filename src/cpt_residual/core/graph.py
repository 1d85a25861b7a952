"""The stages of an experiment as a directed acyclic graph with fingerprints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from cpt_residual.core.hashing import canonical_json, fingerprint, text_sha256
from cpt_residual.core.stage import Node, Stage
from cpt_residual.errors import ConfigError, did_you_mean


@runtime_checkable
class Describes(Protocol):
    """A stage may say in a few words what it makes; the lineage tree shows them."""

    def describe(self) -> str: ...


class Graph:
    """All stages that some targets need, each under its node name, inputs before users.

    Immutable. Two nodes with the same fingerprint are allowed and share one artifact (two
    recipes that happen to be the same); two stages under one name are a defect of ours.
    """

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = MappingProxyType(dict(nodes))

    @classmethod
    def of(cls, targets: Iterable[Stage]) -> Graph:
        """The graph of `targets` and everything they need, found through `Stage.inputs()`."""
        walk = _Walk()
        for target in targets:
            walk.visit(target)
        return cls(walk.nodes)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, inputs before users; the order depends on nothing but the targets."""
        return tuple(self._nodes.values())

    @property
    def fingerprint(self) -> str:
        """One hash over all nodes: the identity of the plan."""
        return text_sha256(canonical_json({n: node.fingerprint for n, node in self._nodes.items()}))

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __getitem__(self, name: str) -> Node:
        """The node called `name`; a ConfigError with the nearest name otherwise."""
        if name not in self._nodes:
            raise ConfigError(f"no stage is called '{name}'.{did_you_mean(name, self._nodes)}")
        return self._nodes[name]

    def distinct(self) -> tuple[Node, ...]:
        """One node per fingerprint, in order: what there is to build at most."""
        first: dict[str, Node] = {}
        for node in self.nodes:
            first.setdefault(node.fingerprint, node)
        return tuple(first.values())

    def inputs_of(self, node: Node | str) -> dict[str, Node]:
        """The nodes whose artifacts `node` reads, by role."""
        return {role: self._nodes[name] for role, name in self._resolve(node).inputs.items()}

    def ancestors(self, node: Node | str) -> tuple[Node, ...]:
        """Everything `node` is made from, directly or not, in order; without `node` itself."""
        found: set[str] = set()
        waiting = list(self._resolve(node).inputs.values())
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(self._nodes[name].inputs.values())
        return tuple(node for name, node in self._nodes.items() if name in found)

    def lineage(self, node: Node | str) -> str:
        """What `node` was made from, as a tree. A part shown before is marked, not repeated;
        beyond the first, an input that another input is made from is shown there only."""
        lines: list[str] = []
        self._draw(self._resolve(node), ("", ""), lines, set())
        return "\n".join(lines)

    def _resolve(self, node: Node | str) -> Node:
        return self[node] if isinstance(node, str) else node

    def _direct_inputs(self, node: Node) -> tuple[Node, ...]:
        """Inputs of `node`, each once; the first, and those that no other input is made from."""
        inputs = {child.stage.node: child for child in self.inputs_of(node).values()}
        implied = {
            earlier.stage.node for child in inputs.values() for earlier in self.ancestors(child)
        }
        implied -= set(list(inputs)[:1])
        return tuple(child for name, child in inputs.items() if name not in implied)

    def _draw(self, node: Node, indent: tuple[str, str], lines: list[str], seen: set[str]) -> None:
        name = node.stage.node
        inputs = self._direct_inputs(node)
        words = [name, f"({node.fingerprint[:8]})"]
        if isinstance(node.stage, Describes):
            words.append(node.stage.describe())
        if repeated := bool(inputs) and name in seen:
            words.append("[see above]")
        lines.append(indent[0] + " ".join(filter(None, words)))
        seen.add(name)
        for position, child in enumerate(() if repeated else inputs, start=1):
            last = position == len(inputs)
            branch, stem = ("└─ ", "   ") if last else ("├─ ", "│  ")
            self._draw(child, (indent[1] + branch, indent[1] + stem), lines, seen)


class _Walk:
    """Depth-first walk; every stage object is asked once for its recipe and inputs."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._by_identity: dict[int, tuple[Stage, Node]] = {}  # keeps stages alive: ids stay unique
        self._open: list[str] = []

    def visit(self, stage: Stage) -> Node:
        known = self._by_identity.get(id(stage))
        if known is not None:
            return known[1]
        assert stage.node not in self._open, f"cycle: {' -> '.join([*self._open, stage.node])}"
        self._open.append(stage.node)
        inputs = {role: self.visit(source) for role, source in stage.inputs().items()}
        self._open.pop()
        node = self._add(stage, inputs)
        self._by_identity[id(stage)] = (stage, node)
        return node

    def _add(self, stage: Stage, inputs: Mapping[str, Node]) -> Node:
        identity = fingerprint(
            stage.name,
            stage.version,
            stage.recipe(),
            {role: node.fingerprint for role, node in inputs.items()},
        )
        present = self.nodes.get(stage.node)
        if present is not None:
            assert present.fingerprint == identity, (
                f"two different stages are called '{stage.node}': "
                f"{present.fingerprint[:16]} and {identity[:16]}"
            )
            return present
        node = Node(
            stage=stage,
            fingerprint=identity,
            level=1 + max((node.level for node in inputs.values()), default=-1),
            inputs={role: node.stage.node for role, node in inputs.items()},
        )
        self.nodes[stage.node] = node
        return node
