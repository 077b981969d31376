"""`parameters:` blocks, checked against what the method declares."""

from __future__ import annotations

from mergewise.methods import Method, Param, all_methods
from mergewise.recipe._nodes import Node
from mergewise.recipe._problems import Position, Problems, shorten, suggest
from mergewise.recipe._settings import Setting, read_setting


def declared_parameters() -> dict[str, list[Param]]:
    """Every parameter that some registered method has, by name."""
    found: dict[str, list[Param]] = {}
    for method in all_methods().values():
        for name, param in method.params.items():
            found.setdefault(name, []).append(param)
    return found


class ParameterReader:
    """Reads the blocks of one stage.

    Attributes:
        method: the stage's method; None if it is unknown, then names and ranges go unchecked.
        declared: parameters of all methods.
        native: whether a parameter that mergekit does not have was used.
    """

    def __init__(self, method: Method | None, problems: Problems) -> None:
        self.method = method
        self.problems = problems
        self.declared = declared_parameters()
        self.native = False

    def read(self, node: Node | None, where: str, of_source: bool = False) -> dict[str, Setting]:
        """The settings in a block; `of_source` if it stands under one model."""
        if node is None:
            return {}
        if not isinstance(node.value, dict):
            self.problems.error(node.position, f"{where}: a mapping expected, got {node.kind}")
            return {}
        settings = {}
        for name, child in node.value.items():
            at = node.key_position(name)
            if self.method is None or self._is_known(self.method, name, at, where):
                setting = self._setting(name, child, f"{where}.{shorten(name)}", of_source, at)
                if setting is not None:
                    settings[name] = setting
        return settings

    def _setting(
        self, name: str, node: Node, where: str, of_source: bool, at: Position
    ) -> Setting | None:
        setting = read_setting(node, where, self.problems)
        self.native = self.native or bool(setting and setting.native)
        param = self.method.params.get(name) if self.method else None
        if setting is None or self.method is None:
            return setting
        if param is None:
            self._check_foreign(setting, name)
            return setting
        self.native = self.native or param.native
        if of_source and not param.per_model:
            self.problems.warn(
                at,
                f"{where} has no effect: {self.method.name} has one `{name}` for all models; "
                "put it under `parameters:` of the slice or at the top level",
            )
        for leaf, place in setting.leaves():
            problem = param.problem(leaf)
            if problem:
                hint = "; remove the quotes" if _quoted_number(leaf, param) else ""
                self.problems.error(place, f"{where}: {problem}{hint}")
        return setting

    def _check_foreign(self, setting: Setting, name: str) -> None:
        """An unknown name may be forgiven, a value that no old recipe could have may not."""
        for leaf, place in () if name in self.declared else setting.leaves():
            if isinstance(leaf, str):
                self.problems.error(
                    place, f"{setting.where}: a number or a switch expected, got {shorten(leaf)!r}"
                )

    def _is_known(self, method: Method, name: str, at: Position, where: str) -> bool:
        """Whether to go on reading the value; reports a name that `method` does not have."""
        if name in method.params:
            return True
        if any(not param.native for param in self.declared.get(name, ())):
            hint = "" if suggest(name, method.params) else f"; {_accepted(method)}"
            text = f"{where}.{name} has no effect on {method.name}{hint}"
            self.problems.warn(at, text, name, method.params)
            return True
        what = f"{where}: {method.name} has no parameter `{shorten(name)}`"
        hint = "" if suggest(name, method.params) else f"; {_accepted(method)}"
        self.problems.unknown(at, what + hint, name, method.params)
        # what is no parameter value at all is an error even if unknown names are forgiven
        return self.problems.lenient


def _accepted(method: Method) -> str:
    names = ", ".join(method.params)
    return f"its parameters are: {names}" if names else "it has no parameters"


def _quoted_number(leaf: object, param: Param) -> bool:
    if not isinstance(leaf, str) or param.kind not in (float, int):
        return False
    try:
        float(leaf)
    except ValueError:
        return False
    return True
