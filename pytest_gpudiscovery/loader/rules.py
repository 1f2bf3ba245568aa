"""What differs between glibc 2.28 and 2.43, as data.

Each row names the first release that behaves so; sources are the files of glibc's own tags (elf/dl-load.c unless said).
Distributions backport: the table describes upstream, and a difference found by the sweep in ci/ belongs in a row here.
"""

from __future__ import annotations

from pytest_gpudiscovery.loader.record import dataclass


@dataclass(frozen=True)
class Rules:
    """The loader's behaviour in one release; every flag is a question with a yes or no answer."""

    refuses_pie: bool = False
    """DF_1_PIE: "cannot dynamically load position-independent executable"."""
    glibc_hwcaps: bool = False
    """glibc-hwcaps/x86-64-v* subdirectories, the cache extension, and the x86 ISA level check
    (sysdeps/x86/dl-prop.h).
    """
    list_diagnostics: bool = False
    """`ld.so --list-diagnostics` exists (elf/dl-usage.c)."""
    surplus_tunables: bool = False
    """glibc.rtld.nns and .optional_static_tls size the static TLS surplus (elf/dl-tls.c); before: 1,664 bytes."""
    checks_alignment: bool = True
    """A p_align that is no multiple of the page size is refused."""
    filtered_root_aborts: bool = True
    """A dlopened object whose DT_AUXILIARY or DT_FILTER is found is an assertion: exit 127 (elf/dl-deps.c)."""
    relr: bool = False
    """DT_RELR is applied, and needs a reference to GLIBC_ABI_DT_RELR (elf/dl-version.c); before: ignored, and a
    crash.
    """
    legacy_hwcaps: bool = True
    """The tls/, x86_64/, haswell/ ... subdirectories, and cache entries that name such capabilities
    (elf/dl-hwcaps.c).
    """
    enotdir_goes_on: bool = False
    """A path component that is no directory does not end the search in a list."""
    unversioned_aborts: bool = True
    """A versioned reference to a library with no version table at all is an assertion: exit 127 (elf/dl-lookup.c)."""
    dlopen_makes_stack_executable: bool = True
    """dlopen of an object that wants an executable stack makes the stack executable; else it is refused."""
    rseq_in_static_tls: bool = False
    """The rseq area is part of the static TLS block (sysdeps/unix/sysv/linux/dl-extra_tls.h)."""
    unversioned_is_fallback: bool = False
    """An unversioned definition is taken only if the object has no exact match (elf/dl-lookup.c)."""


OLDEST = (2, 28)
NEWEST = (2, 43)

CHANGES: tuple[tuple[tuple[int, int], dict[str, bool]], ...] = (
    ((2, 30), {"refuses_pie": True}),
    ((2, 32), {"surplus_tunables": True, "filtered_root_aborts": False}),
    ((2, 33), {"glibc_hwcaps": True}),
    ((2, 34), {"list_diagnostics": True}),
    ((2, 35), {"checks_alignment": False}),
    ((2, 36), {"relr": True}),
    ((2, 37), {"legacy_hwcaps": False}),
    ((2, 39), {"enotdir_goes_on": True}),
    (
        (2, 41),
        {"unversioned_aborts": False, "dlopen_makes_stack_executable": False, "rseq_in_static_tls": True},
    ),
    ((2, 42), {"unversioned_is_fallback": True}),
)


def rules_for(version: tuple[int, int], **backported: bool) -> Rules:
    """Return the rules of glibc VERSION, changed by BACKPORTED; other versions than the table's get its nearest row."""
    values: dict[str, bool] = {}
    for since, changed in CHANGES:
        if version >= since:
            values.update(changed)
    return Rules(**{**values, **backported})
