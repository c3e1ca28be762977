"""Settings -> a command's options (`i3d.settings`), and help that fits a screen.

``--help`` shows what most need, with an example, and names the rest; ``--help-all`` explains all of
it, the rare options in groups.
"""

import textwrap
import types
from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from i3d.settings import AUTO, COMMON, METADATA, Option

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),  # --top_k is --top-k
    "max_content_width": 100,
}
ALL = "i3d.help-all"


class Stopped(Exception):
    """A command was interrupted, or a connection of its own broke; the cause says which.

    Of the one click prints an empty line, and of the other it takes for granted that nobody reads
    standard output any more, and says nothing. This passes through it.
    """


class BatchSize(click.ParamType):
    """A number, or None for ``auto``."""

    name = "N|auto"

    def convert(self, value: Any, param: Any, context: Any) -> int | None:
        """Read what was given."""
        return None if value in (None, "auto") else click.INT.convert(value, param, context)


class SettingsOption(click.Option):
    """An option under a heading of the help."""

    def __init__(self, *arguments: Any, heading: str = COMMON, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.heading = heading


class Command(click.Command):
    """A command with an example, and with its rare options on a page of their own."""

    def __init__(self, *arguments: Any, example: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.example = example
        if any(self._heading(parameter) != COMMON for parameter in self.params):
            self.params.append(
                click.Option(
                    ["--help-all"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=self._show_all,
                    help="Show the rare options, too.",
                )
            )

    def invoke(self, ctx: click.Context) -> Any:
        """Call the function.

        Raises:
            Stopped: by KeyboardInterrupt or BrokenPipeError.
        """
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            raise Stopped from error

    @staticmethod
    def _heading(parameter: click.Parameter) -> str:
        return getattr(parameter, "heading", COMMON)

    @staticmethod
    def _show_all(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            context.meta[ALL] = True
            click.echo(context.get_help(), color=context.color)
            context.exit()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, or the names of the rare ones."""
        groups: dict[str, list[click.Parameter]] = {}
        for parameter in self.get_params(ctx):
            if not isinstance(parameter, click.Option):
                continue  # the first line has the arguments
            groups.setdefault(self._heading(parameter), []).append(parameter)
        show_all = ctx.meta.get(ALL, False)
        for heading, parameters in sorted(groups.items(), key=lambda group: group[0] != COMMON):
            if heading == COMMON or show_all:
                records = [p.get_help_record(ctx) for p in parameters]
                with formatter.section(heading or "Options"):
                    formatter.write_dl([record for record in records if record is not None])
        rare = [p.opts[0] for h, group in groups.items() if h != COMMON for p in group]
        if rare and not show_all:
            text = f"Rare ones, which --help-all explains: {', '.join(rare)}"
            lines = textwrap.wrap(text, formatter.width, break_on_hyphens=False)
            formatter.write_paragraph()
            formatter.write("\n".join(lines) + "\n")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        if self.example:
            formatter.write_paragraph()
            formatter.write(f"Example:  {self.example}\n")


def command(
    group: click.Group,
    *settings: type,
    name: str | None = None,
    example: str = "",
    omit: Collection[str] = (),
) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function.

    The function gets click's arguments by their names, and before them one object of each of the
    settings' classes. Of a class with a field that is no option and has no default (the location of
    the videos, say) it gets a function of that field's value.

    Args:
        group: where the command belongs.
        settings: dataclasses whose fields are options.
        name: what is typed; None is the function's name.
        example: a line that can be typed.
        omit: fields that this command has no option for.
    """

    def decorate(function: Callable[..., Any]) -> Command:
        arguments = list(reversed(getattr(function, "__click_params__", [])))
        options = [option for cls in settings for option in _options(cls, omit)]

        def run(**given: Any) -> Any:
            objects = [_build(cls, given) for cls in settings]
            return function(*objects, **given)

        made = Command(
            name or function.__name__.replace("_", "-"),
            callback=run,
            params=[*arguments, *options],
            help=function.__doc__,
            example=example,
            context_settings=CONTEXT,
        )
        group.add_command(made)
        return made

    return decorate


def _build(cls: type, given: dict[str, Any]) -> Any:
    """An object of the class from the options that are its fields, which are taken out."""
    given_values = {name: given.pop(_parameter(cls, name), None) for name in _describe(cls)}
    values = {name: value for name, value in given_values.items() if value is not None}
    complete = all(
        name in values or f.default is not MISSING or f.default_factory is not MISSING
        for name, f in ((f.name, f) for f in fields(cls))
    )
    return cls(**values) if complete else partial(cls, **values)


def _describe(cls: type) -> dict[str, Option]:
    """Field -> what the command line says of it; the class's own fields before inherited ones."""
    found = {f.name: f.metadata[METADATA] for f in fields(cls) if METADATA in f.metadata}
    own = vars(cls).get("__annotations__", {})
    return dict(sorted(found.items(), key=lambda item: item[0] not in own))


def _parameter(cls: type, name: str) -> str:
    return f"{cls.__module__}_{cls.__name__}_{name}".replace(".", "_").lower()


def _options(cls: type, omit: Collection[str]) -> list[SettingsOption]:
    hints = get_type_hints(cls)
    defaults = {f.name: f.default for f in fields(cls)}
    return [
        _option(_parameter(cls, name), name, described, hints[name], defaults[name])
        for name, described in _describe(cls).items()
        if name not in omit
    ]


def _option(
    parameter: str, name: str, described: Option, hint: Any, default: Any
) -> SettingsOption:
    flag = described.flag or f"--{name.replace('_', '-')}"
    text = described.help
    if described.default_is:
        text = f"{text}  [default: {described.default_is}]"
    more: dict[str, Any] = {"help": text, "required": described.required}
    if described.metavar:
        more["metavar"] = described.metavar
    if bool in (hint, *get_args(hint)):
        if flag.startswith("--no-"):
            more |= {"flag_value": False, "default": True, "type": bool}
        more |= {"is_flag": True, "default": default}
    else:
        more |= {"type": BatchSize()} if described.metavar == AUTO else _value_type(hint)
        if default not in (MISSING, None, "", ()):
            more |= {"default": default, "show_default": True}
    return SettingsOption([flag, parameter], heading=described.heading, **more)


def _value_type(hint: Any) -> dict[str, Any]:
    """Click's type of a field's type: Literal, str, int, float, each with or without None."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return _value_type(kinds[0])
    if get_origin(hint) is Literal:
        return {"type": click.Choice([choice for choice in get_args(hint) if choice])}
    if get_origin(hint) is tuple:
        return {"type": get_args(hint)[0], "multiple": True}
    if hint not in (str, int, float):
        raise TypeError(f"an option of type {hint}")
    return {"type": hint}
