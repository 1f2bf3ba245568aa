"""JSON text for the journal, without the 10 ms that `import json` costs every probe (it needs re, re needs enum)."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from _json import encode_basestring_ascii, make_encoder

    # As json.JSONEncoder.iterencode calls it; arguments unchanged from CPython 3.10 to 3.14.
    _encode = make_encoder({}, str, encode_basestring_ascii, None, ": ", ", ", False, False, True)

    def dumps(value: "Any") -> str:
        """Return VALUE as JSON, what JSON lacks as its str(). Raises TypeError for keys, ValueError for cycles."""
        return "".join(_encode(value, 0))

except (ImportError, TypeError):  # another Python than CPython, or a later one
    import json

    def dumps(value: "Any") -> str:
        """Return VALUE as JSON, what JSON lacks as its str(). Raises TypeError for keys, ValueError for cycles."""
        return json.dumps(value, default=str)
