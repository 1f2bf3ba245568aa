"""Frozen records without the cost of importing `dataclasses`.

Importing the standard `dataclasses` pulls in inspect, ast, re and dis: more time than predicting the closure of a
1.2 GB library. Type checkers see the real thing; at run time this module provides the part of it that is used here:
`@dataclass(frozen=True)` with positional or keyword arguments, defaults, equality, repr and no assignment.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 (a re-export)
else:
    from _operator import attrgetter  # of `operator`, without the import

    def dataclass(*, frozen):
        """Make the decorated class a frozen record of its annotated names, in order."""
        if not frozen:
            raise TypeError("records are frozen")

        def decorate(cls):
            names = tuple(vars(cls).get("__annotations__", ()) or _annotations(cls))
            known = frozenset(names)

            def __init__(self, *args, **given):
                if len(args) == len(names) and not given:
                    self.__dict__.update(zip(names, args))  # noqa: B905 (as long as each other)
                    return
                values = dict(zip(names, args))  # noqa: B905 (too many arguments are reported below)
                if len(args) > len(names) or not known.issuperset(given) or not values.keys().isdisjoint(given):
                    raise TypeError(f"{cls.__name__}: unexpected arguments {args[len(names) :]} {sorted(given)}")
                values.update(given)
                for name in names:
                    if name not in values and name not in cls.__dict__:
                        raise TypeError(f"{cls.__name__}: {name} is required")
                self.__dict__.update(values)

            def __setattr__(_self, name, _value):
                raise AttributeError(f"{cls.__name__}.{name} cannot be assigned: the record is frozen")

            key = attrgetter(*names)  # a fifth of the time of a generator; libcublasLt.so has 5000 images to count

            cls.__init__ = __init__
            cls.__setattr__ = __setattr__
            cls.__eq__ = lambda self, other: type(self) is type(other) and key(self) == key(other)
            cls.__hash__ = lambda self: hash(key(self))
            cls.__repr__ = lambda self: (
                f"{cls.__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"
            )
            cls.__record_fields__ = names
            return cls

        return decorate

    def _annotations(cls):
        """Return the annotated names where Python computes them on demand (3.14 and later)."""
        import annotationlib  # noqa: PLC0415 (exists only there)

        return annotationlib.get_annotations(cls, format=annotationlib.Format.STRING)


def plain(value: object) -> object:
    """Return VALUE with every record in it turned into a dict, every tuple into a list: ready for JSON."""
    names = getattr(type(value), "__record_fields__", None)
    if names is not None:
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
