"""Chat templates that a recipe gives as text: parsed, never rendered."""

from __future__ import annotations

from typing import Any


def jinja_problem(text: str) -> str | None:
    """Why a text is no Jinja template, in words; None if it is one.

    The dialect is that of `transformers`: loop controls, and ``{% generation %}`` blocks.
    """
    import jinja2

    try:
        _environment().parse(text)
    except jinja2.TemplateSyntaxError as error:
        return f"no Jinja template: line {error.lineno} of it: {error.message}"
    except RecursionError:
        return "no Jinja template that can be used: its parts are nested too deeply"
    return None


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """What marks the assistant's words; here it only has to be read."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
